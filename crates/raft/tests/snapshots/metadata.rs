//! The metadata store on sled: whatever happened to its files, it opens, takes what it is given, and keeps it.

use std::{
    fs,
    path::{Path, PathBuf},
};

use kvorum_raft::meta_store::{MetaStore, SledMetaStore};

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

fn files(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_dir() {
            files(&entry.path(), found);
        } else {
            found.push(entry.path());
        }
    }
    found.sort();
}

/// A store as a server leaves it: some generations of a topology, a few small keys, a large value.
fn fill(dir: &Path) {
    let store = SledMetaStore::open(dir).unwrap();
    for generation in 0..5_u8 {
        store.put(b"topology", &vec![generation; 3000]).unwrap();
        for server in 0..10_u8 {
            store.put(&[b's', server], &[generation; 40]).unwrap();
        }
        store.put(b"large", &vec![generation; 50_000]).unwrap();
        store.delete(&[b's', generation]).unwrap();
        store.flush().unwrap();
    }
}

/// It opens, now or, when damage shows only in use, at the start after; and then it works. What it says of a key is
/// nothing or something that was put there.
fn invariant_it_is_rebuilt_and_never_fatal(dir: &Path, context: &str) {
    for _ in 0..2 {
        let store = SledMetaStore::open(dir).unwrap_or_else(|error| panic!("{context}: {error}"));
        let works = || {
            if let Some(value) = store.get(b"topology")? {
                let generation = value.first().copied().unwrap_or(9);
                assert!(
                    value == vec![generation; 3000] && generation < 5 || value == b"new",
                    "{context}: {value:?}"
                );
            }
            store.scan(b"s")?;
            store.put(b"topology", b"new")?;
            store.flush()?;
            store.get(b"topology")
        };
        if let Ok(value) = works() {
            assert_eq!(value.as_deref(), Some(&b"new"[..]), "{context}");
            drop(store);
            let again = SledMetaStore::open(dir).unwrap_or_else(|error| panic!("{context}, again: {error}"));
            assert_eq!(again.get(b"topology").unwrap().as_deref(), Some(&b"new"[..]), "{context}, again");
            return;
        }
    }
    panic!("{context}: it was not rebuilt");
}

#[test]
fn a_damaged_store_is_rebuilt_wherever_the_damage_is() {
    let base = tempfile::tempdir().unwrap();
    fill(base.path());
    let mut names = Vec::new();
    files(base.path(), &mut names);
    let mut points = 0;
    for name in &names {
        let content = fs::read(name).unwrap();
        let inside = name.strip_prefix(base.path()).unwrap();
        // The store's log is mostly zeros behind its end.
        let used = content.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        let places = (0..used).step_by(used / 40 + 1);
        let mut damaged: Vec<(String, Option<Vec<u8>>)> = vec![("removed".to_owned(), None)];
        for at in places {
            damaged.push((format!("cut at {at}"), Some(content[..at].to_vec())));
            let mut zeros = content.clone();
            zeros[at..].fill(0);
            damaged.push((format!("zeros from {at}"), Some(zeros)));
            let mut flipped = content.clone();
            flipped[at] ^= 0x10;
            damaged.push((format!("flipped at {at}"), Some(flipped)));
        }
        for (what, content) in damaged {
            let dir = tempfile::tempdir().unwrap();
            copy(base.path(), dir.path());
            let path = dir.path().join(inside);
            match content {
                Some(content) => fs::write(&path, content).unwrap(),
                None => fs::remove_file(&path).unwrap(),
            }
            invariant_it_is_rebuilt_and_never_fatal(dir.path(), &format!("{}: {what}", inside.display()));
            points += 1;
        }
    }
    println!("the metadata store: {points} kinds of damage in {} files", names.len());
    assert!(points > 150, "only {points}");
}
