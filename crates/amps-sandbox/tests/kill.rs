//! What was acked is in the journal, however the process died.

#![cfg(unix)]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Command as Process, Stdio};
use std::time::Duration;

use amps_client::protocol::{Command, FrameDecoder, Header, Publish};
use amps_client::uri::Uri;
use amps_sandbox::{Sandbox, read_journal};

const DIRECTORY: &str = "AMPS_SANDBOX_TEST_JOURNAL";

/// Not a test by itself: the server that the test below kills.
#[tokio::test]
#[ignore = "the other test starts it"]
async fn server_to_be_killed() {
    let Ok(directory) = std::env::var(DIRECTORY) else {
        return;
    };
    let sandbox = Sandbox::builder()
        .listen("tcp://127.0.0.1:0/amps/json")
        .journal(directory)
        .ack_interval(Duration::from_millis(1))
        .start()
        .await
        .unwrap();
    println!("\nlistening {}", sandbox.uri());
    std::future::pending().await
}

#[test]
fn sigkill_loses_nothing_that_was_acked() {
    let directory = tempfile::tempdir().unwrap();
    let (mut next, mut acked) = (1_u64, 0);
    for _ in 0..4 {
        let mut server = Process::new(std::env::current_exe().unwrap())
            .args(["--exact", "server_to_be_killed", "--ignored", "--nocapture"])
            .env(DIRECTORY, directory.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(server.stdout.take().unwrap()).lines();
        let mut lines = lines.map(Result::unwrap);
        let uri = lines.find_map(|line| line.strip_prefix("listening ").map(str::to_owned));
        let uri: Uri = uri.unwrap().parse().unwrap();
        let mut stream = TcpStream::connect((uri.host(), uri.port())).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        let mut out = Vec::new();
        Command::logon("0", "p").encode(&mut out).unwrap();
        stream.write_all(&out).unwrap();
        let mut sending = stream.try_clone().unwrap();
        let first = next;
        let publisher = std::thread::spawn(move || {
            for sequence in first..first + 20_000 {
                let mut out = Vec::new();
                Publish::stored("orders", sequence, &[b'x'; 300])
                    .encode(&mut out)
                    .unwrap();
                if sending.write_all(&out).is_err() {
                    return sequence;
                }
            }
            first + 20_000
        });
        let mut decoder = FrameDecoder::new();
        let mut buffer = [0; 4096];
        while acked < first + 2000 {
            let read = stream.read(&mut buffer).unwrap();
            assert!(read > 0);
            decoder.push(&buffer[..read]);
            while let Some(frame) = decoder.next_frame().unwrap() {
                let figure = Header::parse(&frame).unwrap().0.sequence.unwrap();
                assert!(figure >= acked, "the figure never falls back");
                acked = figure;
            }
        }
        server.kill().unwrap();
        server.wait().unwrap();
        next = publisher.join().unwrap() + 1;
        let journal = read_journal(directory.path()).unwrap();
        let sequences: Vec<_> = journal
            .iter()
            .map(|entry| entry.sequence.unwrap())
            .collect();
        assert!(sequences.is_sorted_by(|a, b| a < b), "each once, in order");
        assert!(sequences.last().is_some_and(|last| *last >= acked));
        let of_this_run = sequences
            .iter()
            .filter(|s| (first..=acked).contains(s))
            .count() as u64;
        assert_eq!(of_this_run, acked + 1 - first, "everything acked is there");
    }
}
