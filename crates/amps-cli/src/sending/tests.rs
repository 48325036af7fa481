//! What the report says of a store whose device failed and whose log has no room, which no test from
//! outside can bring about.
#![allow(clippy::unwrap_used, reason = "a test ends where it cannot go on")]

use std::process::Command;

use amps_client::connector::SchemeConnector;
use amps_store::testkit::{Bug, Fault, SimDisk, plant};
use amps_store::{Envelope, Options};
use serde_json::Value;

use super::*;

fn options() -> Options {
    Options::new().capacity(64 << 10).client_name("failed")
}

/// The run itself, in a process of its own whose output the other test reads.
#[tokio::test]
#[ignore = "the process that what_a_failed_device_could_not_note_is_in_the_report starts"]
async fn run_on_a_failed_device() {
    // As in a log that lacked room when its device failed.
    plant(Some(Bug::ReserveSpent));
    let disk = SimDisk::new();
    let store = disk.open(options()).unwrap();
    store.raise_grant(10_000).unwrap();
    disk.fail(Fault::Sync(0));
    store.sync().unwrap_err();
    while let Ok(at) = store.append(&Envelope::publish("bad"), &[b'7'; 200]) {
        let behind = at.sequence.saturating_sub(10);
        store.settle_through(behind).unwrap();
    }
    let sandbox = Sandbox::builder()
        .listen("tcp://127.0.0.1:0/amps/json")
        .ack_interval(Duration::from_millis(1))
        .reject_topic("bad")
        .start()
        .await
        .unwrap();
    let job = Job {
        store,
        path: Some("s.store".into()),
        servers: vec![sandbox.uri().to_owned()],
        carried: Carried::Amps(Arc::new(SchemeConnector::default())),
        flush_timeout: Duration::from_secs(30),
        status_interval: None,
        evacuate_to: None,
        mode: None,
        publish_ids: false,
        heartbeat: Heartbeat(None),
        input: None,
        stop: Stop::listen().unwrap(),
        json: true,
    };
    let exit = run(job).await.unwrap();
    plant(None);
    let bounds = disk.open(options()).unwrap().bounds();
    say(&format!("exit {}, then {}", exit.code(), bounds.unsettled));
    crate::output::finish();
}

#[test]
fn what_a_failed_device_could_not_note_is_in_the_report() {
    let mut child = Command::new(std::env::current_exe().unwrap());
    let name = "sending::tests::run_on_a_failed_device";
    child.args(["--exact", name, "--ignored", "--nocapture"]);
    let ended = child.output().unwrap();
    let said = String::from_utf8(ended.stderr).unwrap();
    assert!(ended.status.success(), "{said}");
    let output = String::from_utf8(ended.stdout).unwrap();
    let objects = output
        .lines()
        .filter_map(|line| line.find('{').map(|at| &line[at..]));
    let mut objects = objects.filter_map(|text| serde_json::from_str::<Value>(text).ok());
    let report = objects.next_back().unwrap();
    assert_eq!(report["event"], "report", "{output}");
    let number = |name: &str| report[name].as_u64().unwrap();
    let unrecorded = number("unrecorded");
    assert!(unrecorded > 0, "{report}");
    assert_eq!(number("left"), unrecorded, "all was refused");
    assert_eq!(number("unrecorded_refusals"), unrecorded);
    assert!(number("rejected") > unrecorded, "some are in the log");
    // What the report calls left is what the next run finds.
    assert!(
        said.contains(&format!("exit 5, then {unrecorded}")),
        "{said}"
    );
    for words in [
        format!("error: the store s.store could not note what became of {unrecorded} message(s)"),
        format!("{unrecorded} refusal(s) are among what it could not note"),
    ] {
        assert!(said.contains(&words), "{words}: {said}");
    }
    assert!(
        !said.contains("amps drain"),
        "they wait for no server: {said}"
    );
}

#[test]
fn what_could_not_be_noted_in_words() {
    let words = |messages, refusals| unrecorded_in_words(Unrecorded::new(messages, refusals), "S");
    assert_eq!(words(0, 0), None);
    let late = words(0, 2).unwrap();
    assert!(
        late.contains("S could not note 2 refusal(s)") && late.contains("first"),
        "{late}"
    );
    let settled = words(3, 0).unwrap();
    assert!(
        settled.contains("3 message(s)") && !settled.contains("refus"),
        "{settled}"
    );
    let both = words(3, 2).unwrap();
    assert!(
        both.contains("3 message(s)") && both.contains("2 refusal(s)"),
        "{both}"
    );
}
