//! `amps demo`: a publisher is killed, the next one finishes its work, and the server's
//! journal proves it.

mod story;

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use amps_client::{Client, FailedWrite, Message};
use amps_sandbox::Sandbox;
use amps_store::{Options, Store};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, Command};
use tokio::time::{Instant, timeout};

use crate::args::Demo;
use crate::failure::{Exit, Failure};
use crate::resume::Stored;
use crate::store::look;

use self::story::Story;

const TOPIC: &str = "orders";
const NAME: &str = "demo-publisher";

/// Messages in all; the first publisher dies at half of them.
const LINES: u64 = 5000;
/// The server goes away after this one.
const OUTAGE: u64 = 1500;
/// The one that the server refuses: published by the first process, sent only by the second.
const REFUSED: u64 = 2222;
/// The last one the first publisher stores.
const KILLED_AT: u64 = LINES / 2;

/// No step of the story takes longer on any usable machine.
const PATIENCE: Duration = Duration::from_secs(20);

/// Plays the story, and checks its outcome.
///
/// # Errors
/// What could not be played, or what did not come out as it must.
pub(crate) async fn run(args: Demo, json: bool) -> Result<Exit, Failure> {
    let place = Place::new(args.keep)?;
    let mut story = Story::new(json)?;
    story.tell(&format!(
        "{LINES} orders are to be published. Order {REFUSED} is not valid JSON, and this server \
         refuses such messages."
    ))?;

    let server = place.server().await?;
    story.step(&format!("1. A server listens at {}", server.uri()))?;
    let mut first = FirstPublisher::start(&place, &server.uri())?;
    story.step(&format!(
        "2. Process {} publishes through {}",
        first.pid,
        place.store.display()
    ))?;
    first.publish(1..=OUTAGE).await?;
    wait_for(&server, OUTAGE, &place.store).await?;
    server.stop().await;
    story.tell(&format!(
        "The server has {OUTAGE} orders and goes away. The publisher goes on: its store takes \
         the orders."
    ))?;
    first.publish(OUTAGE + 1..=KILLED_AT).await?;
    let pid = first.pid;
    first.kill().await?;
    story.step(&format!(
        "3. SIGKILL to process {pid}, half-way: {KILLED_AT} orders are in its store, the server \
         has seen {OUTAGE}"
    ))?;

    let server = place.server().await?;
    story
        .step("4. The server is back, with its journal. A second publisher opens the same store")?;
    let refusals = second_publisher(&place, &server.uri(), &mut story).await?;

    story.step("5. The proof: the server's journal, read back")?;
    let journal = server
        .journal()
        .map_err(|e| Failure::other(format!("cannot read the journal back: {e}")))?;
    let found: Vec<&[u8]> = journal
        .iter()
        .filter(|entry| entry.topic == TOPIC)
        .map(|entry| entry.bytes.as_ref())
        .collect();
    let expected: Vec<Vec<u8>> = (1..=LINES)
        .filter(|&n| n != REFUSED)
        .map(|n| order(n).into_bytes())
        .collect();
    story.check(
        "every order but the refused one is in the journal, exactly once and in order",
        found == expected,
        &format!("{} entries", found.len()),
    )?;
    server.stop().await;
    story.check(
        "the refusal was reported once, with the original message",
        refusals.len() == 1 && refusals[0] == order(REFUSED).as_bytes(),
        &format!("{} report(s)", refusals.len()),
    )?;
    let waiting = failed_list(&place.store).await?;
    story.check(
        &format!(
            "it waits for somebody: amps failed list {}",
            place.store.display()
        ),
        waiting == [order(REFUSED)],
        &format!("{} waiting", waiting.len()),
    )?;
    if place.is_temporary() {
        story.tell("To look around afterwards, run it again with --keep DIR.")?;
    }
    story.end()
}

/// The line of an order, as it is published.
fn order(n: u64) -> String {
    if n == REFUSED {
        return format!(r#"{{"order":{n},"item":"a thing, "quantity":oops}}"#);
    }
    let items = ["anvil", "bucket", "candle", "drum", "egg timer"];
    let item = items[(n % items.len() as u64) as usize];
    format!(
        r#"{{"order":{n},"item":"{item}","quantity":{}}}"#,
        1 + n * 7 % 12
    )
}

/// Where the store and the journal are.
struct Place {
    store: PathBuf,
    journal: PathBuf,
    /// Removes everything when the demo ends, unless it is kept.
    temporary: Option<tempfile::TempDir>,
}

impl Place {
    fn new(keep: Option<PathBuf>) -> Result<Self, Failure> {
        let wrong = |what: &Path, e: std::io::Error| {
            Failure::other(format!(
                "cannot use {}: {e}; choose another --keep",
                what.display()
            ))
        };
        let (dir, temporary) = match keep {
            None => {
                let dir = tempfile::tempdir()
                    .map_err(|e| Failure::other(format!("no temporary directory: {e}")))?;
                (dir.path().to_owned(), Some(dir))
            }
            Some(dir) => {
                std::fs::create_dir_all(&dir).map_err(|e| wrong(&dir, e))?;
                if std::fs::read_dir(&dir)
                    .map_err(|e| wrong(&dir, e))?
                    .next()
                    .is_some()
                {
                    return Err(Failure::other(format!(
                        "{} is not empty; name a new directory with --keep",
                        dir.display()
                    )));
                }
                (dir, None)
            }
        };
        Ok(Place {
            store: dir.join("orders.store"),
            journal: dir.join("journal"),
            temporary,
        })
    }

    fn is_temporary(&self) -> bool {
        self.temporary.is_some()
    }

    async fn server(&self) -> Result<Sandbox, Failure> {
        Sandbox::builder()
            .listen("tcp://127.0.0.1:0/amps/json")
            .journal(&self.journal)
            .reject_invalid_json(TOPIC)
            .ack_interval(Duration::from_millis(50))
            .start()
            .await
            .map_err(|e| Failure::other(format!("cannot start the sandbox server: {e}")))
    }
}

/// `amps publish` in a process of its own, fed line by line.
struct FirstPublisher {
    child: Child,
    pid: u32,
    stored: tokio::io::Lines<BufReader<tokio::process::ChildStdout>>,
}

impl FirstPublisher {
    fn start(place: &Place, server: &str) -> Result<Self, Failure> {
        let mut child = this_program()?
            .args([
                "publish",
                "--topic",
                TOPIC,
                "--client-name",
                NAME,
                "--server",
                server,
            ])
            .args(["--resume", "--announce", "--json", "--file", "-", "--store"])
            .arg(&place.store)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .map_err(|e| Failure::other(format!("cannot start the first publisher: {e}")))?;
        let (Some(pid), Some(stdout)) = (child.id(), child.stdout.take()) else {
            return Err(Failure::other("the first publisher ended before it began"));
        };
        Ok(FirstPublisher {
            child,
            pid,
            stored: BufReader::new(stdout).lines(),
        })
    }

    /// Feeds these orders, and returns when all of them are in the store.
    async fn publish(&mut self, orders: std::ops::RangeInclusive<u64>) -> Result<(), Failure> {
        let last = *orders.end();
        let Some(stdin) = self.child.stdin.as_mut() else {
            return Err(Failure::other("the first publisher has no input"));
        };
        let feed = async {
            for n in orders {
                stdin
                    .write_all(format!("{}\n", order(n)).as_bytes())
                    .await?;
            }
            stdin.flush().await
        };
        let stored = async {
            while let Some(line) = self.stored.next_line().await? {
                let said: Value = serde_json::from_str(&line).unwrap_or_default();
                if said["event"] == "stored" && said["line"] == last {
                    return Ok(());
                }
            }
            Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof))
        };
        match timeout(PATIENCE, async { tokio::try_join!(feed, stored) }).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(Failure::other(format!(
                "the first publisher ended too early: {error}"
            ))),
            Err(_) => Err(Failure::other(
                "the first publisher did not store its orders in time",
            )),
        }
    }

    /// Sends SIGKILL, which no process can catch, to this one process.
    async fn kill(mut self) -> Result<(), Failure> {
        self.child
            .kill()
            .await
            .map_err(|e| Failure::other(format!("cannot kill process {}: {e}", self.pid)))
    }
}

/// Finishes the work of the first one. Returns the originals of the refusals that were reported.
async fn second_publisher(
    place: &Place,
    server: &str,
    story: &mut Story,
) -> Result<Vec<Vec<u8>>, Failure> {
    let options = Options::new().client_name(NAME);
    let store = Store::open_existing(&place.store, options).map_err(|e| Failure::open(&e))?;
    let recovered = store.bounds().unsettled;
    let resume_at = store
        .resume_tag()
        .and_then(|tag| Stored::from_tag(&tag))
        .map_or(0, Stored::lines);
    story.tell(&format!(
        "It recovered {recovered} unsettled messages. The last line in the store is {resume_at}."
    ))?;

    let reports: Arc<Mutex<Vec<FailedWrite>>> = Arc::default();
    let heard = Arc::clone(&reports);
    let client = Client::builder(NAME)
        .server(server)
        .store(store.clone())
        .on_failed_write(move |failed| {
            heard
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(failed);
            // Not accepted: it must wait in the store.
            async { Err("left for a person to decide".into()) }
        })
        .open()
        .await
        .map_err(|e| Failure::other(e.to_string()))?;
    for n in resume_at + 1..=LINES {
        let message = Message::publish(TOPIC, order(n)).user_tag(n.to_string());
        client
            .send(message)
            .await
            .map_err(|e| Failure::other(e.to_string()))?;
    }
    let flushed = client.publish_flush(PATIENCE).await;
    let closed = client.close(PATIENCE).await;
    let counts = client.health().counts;
    story.tell(&format!(
        "It resent {} and published {}: persisted {} (covered at logon {}), rejected {}, left {}.",
        counts.resent,
        counts.published,
        counts.persisted,
        counts.persisted_at_logon,
        counts.rejected,
        closed.left
    ))?;
    flushed.map_err(|e| Failure::other(e.to_string()))?;
    let mut originals = Vec::new();
    for report in reports
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .iter()
    {
        let original = report
            .original
            .as_ref()
            .map(|m| m.payload().to_vec())
            .unwrap_or_default();
        story.tell(&format!(
            "Failed write: sequence {}, refused: {}, {}, original message:\n    {}",
            report.sequence,
            report.reason,
            if report.earlier_run {
                "published by the dead process"
            } else {
                "published now"
            },
            String::from_utf8_lossy(&original)
        ))?;
        originals.push(original);
    }
    Ok(originals)
}

/// Waits until the server has settled `count` messages of the first publisher, and the
/// publisher knows it.
async fn wait_for(server: &Sandbox, count: u64, store: &Path) -> Result<(), Failure> {
    let deadline = Instant::now() + PATIENCE;
    while server.settled(NAME) < count || look(store)?.info().floor < count {
        if Instant::now() > deadline {
            return Err(Failure::other(
                "the orders did not reach the server in time",
            ));
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok(())
}

/// The payloads that `amps failed list` shows, asked of the program itself.
async fn failed_list(store: &Path) -> Result<Vec<String>, Failure> {
    let output = this_program()?
        .args(["failed", "list", "--json"])
        .arg(store)
        .stdin(Stdio::null())
        .output()
        .await
        .map_err(|e| Failure::other(format!("cannot run amps failed list: {e}")))?;
    Ok(String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(|object| object["sequence"].is_u64())
        .filter_map(|object| object["text"].as_str().map(str::to_owned))
        .collect())
}

fn this_program() -> Result<Command, Failure> {
    std::env::current_exe()
        .map(Command::new)
        .map_err(|e| Failure::other(format!("cannot find this program to run it again: {e}")))
}
