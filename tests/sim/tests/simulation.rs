//! The simulation as a test: it repeats itself, and no seed breaks an invariant.

use std::process::{Command, Output};

/// Seeds of a run of this test; thousands are for `kvorum-sim check --seeds`.
const SEEDS: u64 = 200;

fn simulator(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_kvorum-sim")).args(arguments).output().expect("the simulator starts")
}

fn assert_passes(output: &Output) {
    let out = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{out}{}", String::from_utf8_lossy(&output.stderr));
    eprint!("{out}");
}

#[test]
fn the_same_seed_twice_in_two_processes_gives_the_same_trace() {
    for seed in ["1", "2", "3"] {
        assert_passes(&simulator(&["gate", "--seed", seed]));
    }
}

#[test]
fn no_seed_breaks_an_invariant() {
    assert_passes(&simulator(&["check", "--first", "1", "--seeds", &SEEDS.to_string()]));
}

/// Slow disks, servers that are silent for a moment, and a bad network elect nobody; where a leader is killed, another leads after its lease.
#[test]
fn leaders_stay_and_are_replaced_at_once() {
    assert_passes(&simulator(&["steady", "--first", "1", "--seeds", "10"]));
}
