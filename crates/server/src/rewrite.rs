//! CONFIG REWRITE: the running settings go into the server's configuration file, whose comments and other settings stay.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use toml_edit::{DocumentMut, Item, Value};

/// Why a file could not be rewritten.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RewriteError {
    /// The file system failed.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// Somebody broke the file since the server started.
    #[error("{0}")]
    Toml(#[from] toml_edit::TomlError),
}

/// A setting as the file has it.
pub(crate) struct Line {
    /// Its name.
    pub(crate) name: &'static str,
    /// Its value.
    pub(crate) value: Value,
    /// Whether a file that does not name it means this value.
    pub(crate) is_default: bool,
}

/// Changes the values in a file's text; what is the default and does not stand there stays away.
fn rewritten(text: &str, lines: Vec<Line>) -> Result<String, RewriteError> {
    let mut document: DocumentMut = text.parse()?;
    for Line { name, mut value, is_default } in lines {
        match document.get_mut(name) {
            Some(Item::Value(old)) => {
                // Blanks and a comment behind it belong to the line.
                *value.decor_mut() = old.decor().clone();
                *old = value;
            }
            _ if is_default => {}
            _ => document[name] = Item::Value(value),
        }
    }
    Ok(document.to_string())
}

/// Rewrites the file, all of it or nothing.
pub(crate) fn rewrite(path: &Path, lines: Vec<Line>) -> Result<(), RewriteError> {
    // A link stays one.
    let path = fs::canonicalize(path)?;
    let text = rewritten(&fs::read_to_string(&path)?, lines)?;
    let draft = PathBuf::from(format!("{}.rewrite", path.display()));
    let mut file = File::create(&draft)?;
    fs::set_permissions(&draft, fs::metadata(&path)?.permissions())?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&draft, &path)?;
    let folder = path.parent().unwrap_or(Path::new("/"));
    File::open(folder)?.sync_all()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_other_settings_stay() {
        let text = "# Mine.\nbase-port = 7100 # here\n\n# Not too many.\nmaxclients = 100   # for now\nbind = \"::1\"\n";
        let lines = vec![
            Line { name: "maxclients", value: Value::from(7), is_default: false },
            Line { name: "timeout", value: Value::from(9), is_default: false },
            Line { name: "slowlog-max-len", value: Value::from(128), is_default: true },
            Line { name: "requirepass", value: Value::from("a \"b\""), is_default: false },
        ];
        let rewritten = rewritten(text, lines).unwrap();
        assert_eq!(
            rewritten,
            "# Mine.\nbase-port = 7100 # here\n\n# Not too many.\nmaxclients = 7   # for now\nbind = \"::1\"\ntimeout = 9\n\
             requirepass = 'a \"b\"'\n"
        );
    }

    #[test]
    fn a_file_is_rewritten_as_a_whole_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kvorum.toml");
        fs::write(&path, "timeout = 1\n").unwrap();
        let line = || vec![Line { name: "timeout", value: Value::from(2), is_default: false }];
        rewrite(&path, line()).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "timeout = 2\n");
        fs::write(&path, "timeout = \n").unwrap();
        assert!(matches!(rewrite(&path, line()), Err(RewriteError::Toml(_))));
        assert_eq!(fs::read_to_string(&path).unwrap(), "timeout = \n");
        assert!(rewrite(&dir.path().join("none"), line()).is_err());
    }
}
