//! `amps bench` reports figures, and measures what it was asked for.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use common::{amps, run};

#[test]
fn a_quick_measurement_tells_both_figures() {
    let dir = tempfile::tempdir().unwrap();
    let ran = run(amps()
        .args([
            "--json", "bench", "--quick", "--rounds", "1", "t11", "T6", "--dir",
        ])
        .arg(dir.path()))
    .expect(0);
    let rows = ran.objects();
    assert!(rows.iter().any(|row| row["target"] == "T11"));
    let get = rows.iter().find(|row| row["target"] == "T6").unwrap();
    let (ours, floor) = (
        get["ours"].as_f64().unwrap(),
        get["floor"].as_f64().unwrap(),
    );
    assert!(ours > 0.0 && floor > 0.0);
    assert!((get["ratio"].as_f64().unwrap() - ours / floor).abs() < 1e-6);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn a_target_that_does_not_exist_is_a_usage_error() {
    run(amps().args(["bench", "T14"])).expect(2);
}
