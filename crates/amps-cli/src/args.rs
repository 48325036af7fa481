//! The command line. Names and fields are an interface, which `README.md` describes.

use std::path::PathBuf;
use std::time::Duration;

use amps_client::jetstream::Mode;
use amps_store::Level;
use clap::{Args, Parser, Subcommand};

use crate::units;

const EXIT_CODES: &str = "\
Exit codes, the first that applies: 2 usage, 4 store locked, 3 store damaged, 9 not a store, \
10 store of a newer format, 8 no space, 7 logon refused, 5 messages left in the store, 6 messages \
rejected in this run, 1 any other error, 0 success. Codes 5 and 6 come only from publish and \
drain.";

/// Where a server is looked for when none is named.
pub(crate) const DEFAULT_SERVER: &str = "tcp://127.0.0.1:9007/amps/json";

/// Publish through a durable store, look inside one, and run a sandbox server to try it
/// against.
#[derive(Debug, Parser)]
#[command(name = "amps", version, after_help = EXIT_CODES, propagate_version = true)]
pub(crate) struct Cli {
    /// Print one JSON object per line on standard output, the final report last.
    #[arg(long, global = true)]
    pub(crate) json: bool,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run the sandbox server; prints "listening URI" when it is ready.
    ///
    /// It follows the documented rules of a publisher's server, for tests and demonstrations.
    /// It is not a production broker.
    Serve(Serve),
    /// Publish each line of a file or of standard input as one message.
    ///
    /// What the store still holds is sent first. With a store, a missing server never ends the
    /// run early: lines are accepted, and at the end of input the flush timeout runs. Messages
    /// the server refused wait in the store (amps failed list). A message is the line without its
    /// newline, byte for byte; a carriage return belongs to the message.
    Publish(Publish),
    /// Print the body of each message of a topic, byte for byte, and a newline.
    Subscribe(Subscribe),
    /// Send what a dead publisher left in its store.
    Drain(Drain),
    /// Look into a store, read-only, even while a publisher is running.
    Store {
        #[command(subcommand)]
        command: StoreCommand,
    },
    /// Messages that a server refused and that wait for somebody to decide.
    Failed {
        #[command(subcommand)]
        command: FailedCommand,
    },
    /// The story in a minute: a publisher is killed, the next one finishes its work.
    Demo(Demo),
    /// The store under a crash rig: write for ever, or dump what survived.
    Torture {
        #[command(subcommand)]
        command: TortureCommand,
    },
    /// Measure the store and the client on this machine, beside hand-written floors.
    ///
    /// Floor and store take turns in one run; only their ratio says anything about another
    /// machine. Give a directory on the disk that the store will live on.
    Bench(Bench),
    /// Print a completion script for a shell.
    Completions {
        /// bash, elvish, fish, powershell or zsh.
        shell: clap_complete::Shell,
    },
    /// Print the manual page.
    Man,
}

#[derive(Debug, Args)]
pub(crate) struct Serve {
    /// Listen here; port 0 picks a free one. Repeatable. The default can be reached from this
    /// machine only; tcp://0.0.0.0:9007/amps/json from everywhere.
    #[arg(long, value_name = "URI", default_value = DEFAULT_SERVER)]
    pub(crate) listen: Vec<String>,
    /// Remember messages and sequences in this directory, across restarts.
    #[arg(long, value_name = "DIR")]
    pub(crate) journal: Option<PathBuf>,
    /// Refuse every message to this topic. Repeatable.
    #[arg(long, value_name = "TOPIC")]
    pub(crate) reject_topic: Vec<String>,
    /// Refuse messages to this topic that are not JSON ("*": to any topic). Repeatable.
    #[arg(long, value_name = "TOPIC")]
    pub(crate) reject_invalid_json: Vec<String>,
    /// Refuse a logon without this user and password. After ten wrong passwords in a row it refuses
    /// the right one as well, for ten seconds.
    #[arg(long, value_name = "USER:PASSWORD")]
    pub(crate) require_auth: Option<String>,
    /// Challenge logons: who logs on has to answer with what it was asked and the password. For
    /// programs with an authenticator of their own; publish, drain and subscribe have none.
    #[arg(long, requires = "require_auth")]
    pub(crate) challenge: bool,
    /// Keep the last message per key of this topic, for queries and deletes. Repeatable.
    #[arg(long, value_name = "TOPIC")]
    pub(crate) sow_topic: Vec<String>,
    /// Keep this topic out of the log: its messages are acknowledged one by one. Repeatable.
    #[arg(long, value_name = "TOPIC")]
    pub(crate) unlogged_topic: Vec<String>,
    /// Tell logons and refusals on standard error.
    #[arg(short, long)]
    pub(crate) verbose: bool,
    /// Time over which successes are gathered into one acknowledgement.
    #[arg(long, value_name = "DURATION", default_value = "1s", value_parser = units::duration)]
    pub(crate) ack_interval: Duration,
    /// The certificate chain to show on tcps:// addresses, a PEM file.
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    pub(crate) tls_cert: Option<PathBuf>,
    /// The private key of that certificate, a PEM file.
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub(crate) tls_key: Option<PathBuf>,
    /// Take only clients that show a certificate signed by one in this PEM file.
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub(crate) tls_client_ca: Option<PathBuf>,
    /// Misbehave: close-after:N, cut-after:N, stall-after:N, lose-acks-after:N,
    /// delay-acks:DURATION or forget:NAME. Repeatable.
    #[arg(long, value_name = "FAULT")]
    pub(crate) fault: Vec<String>,
}

/// How to connect to tcps:// servers.
#[derive(Debug, Args)]
pub(crate) struct Tls {
    /// Trust the certificates in this PEM file, instead of the system's.
    #[arg(long, value_name = "FILE")]
    pub(crate) tls_ca: Option<PathBuf>,
    /// Show the server this certificate chain, a PEM file.
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    pub(crate) tls_cert: Option<PathBuf>,
    /// The private key of that certificate, a PEM file.
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub(crate) tls_key: Option<PathBuf>,
    /// Expect the server's certificate to be for this name, instead of the URI's host.
    #[arg(long, value_name = "NAME")]
    pub(crate) tls_server_name: Option<String>,
}

impl Tls {
    /// The first option that was given.
    pub(crate) fn given(&self) -> Option<&'static str> {
        let given = [
            ("--tls-ca", self.tls_ca.is_some()),
            ("--tls-cert", self.tls_cert.is_some()),
            ("--tls-server-name", self.tls_server_name.is_some()),
        ];
        given
            .into_iter()
            .find(|(_, is)| *is)
            .map(|(option, _)| option)
    }
}

/// How the silence of a server is noticed.
#[derive(Debug, Args)]
pub(crate) struct Watching {
    /// Interval of heartbeats, by which a silent server is noticed and left for the next one.
    ///
    /// One that confirmed them is left after two and a half intervals of silence. One that did not
    /// answer is left when it owes an acknowledgement or an answer and says nothing for 30 seconds.
    /// With "off" none are asked for, and silence means nothing.
    #[arg(long, value_name = "SECS|off", default_value = "10", value_parser = units::heartbeat)]
    pub(crate) heartbeat: Heartbeat,
}

/// The interval of heartbeats; `None`: off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Heartbeat(pub(crate) Option<Duration>);

/// Who logs on, where a server's URI does not say so.
#[derive(Debug, Args)]
pub(crate) struct Login {
    /// User to log on as, if the URI names none; else the variable AMPS_USER.
    #[arg(long, value_name = "NAME")]
    pub(crate) user: Option<String>,
    /// Read the password from the first line of this file; else the variable AMPS_PASSWORD. It
    /// is for the user of the URI, too, if the URI has no password.
    #[arg(long, value_name = "FILE")]
    pub(crate) password_file: Option<PathBuf>,
}

/// How to publish to servers of NATS.
#[derive(Debug, Args)]
pub(crate) struct Nats {
    /// At nats:// and tls:// servers: make this stream, kept in files, if none takes the topic. It
    /// is this publisher's alone, and each message is stored there once and in order.
    #[arg(long, value_name = "NAME")]
    pub(crate) create_stream: Option<String>,
    /// At nats:// and tls:// servers: "chained" stores each message once and in order, in a stream
    /// that is this publisher's alone; "unchained" shares the stream. The default is chained in a
    /// stream that --create-stream made for this publisher, else unchained.
    #[arg(long, value_name = "ORDER", value_parser = units::order)]
    pub(crate) order: Option<Mode>,
    #[command(flatten)]
    pub(crate) login: NatsLogin,
}

/// Who logs on at servers of NATS, where it is no user with a password.
#[derive(Debug, Args)]
pub(crate) struct NatsLogin {
    /// At nats:// and tls:// servers: log on as this .creds file says.
    #[arg(long, value_name = "FILE", conflicts_with = "nkey")]
    pub(crate) creds: Option<PathBuf>,
    /// At nats:// and tls:// servers: log on with the nkey whose seed is in this file.
    #[arg(long, value_name = "FILE")]
    pub(crate) nkey: Option<PathBuf>,
}

impl NatsLogin {
    /// The first option that was given.
    pub(crate) fn given(&self) -> Option<&'static str> {
        match (&self.creds, &self.nkey) {
            (Some(_), _) => Some("--creds"),
            (None, Some(_)) => Some("--nkey"),
            (None, None) => None,
        }
    }
}

impl Nats {
    /// The first option that was given.
    pub(crate) fn given(&self) -> Option<&'static str> {
        let given = [
            ("--create-stream", self.create_stream.is_some()),
            ("--order", self.order.is_some()),
        ];
        let first = given.into_iter().find(|(_, is)| *is);
        first.map(|(option, _)| option).or(self.login.given())
    }
}

/// Where to send, shared by publish and drain.
#[derive(Debug, Args)]
pub(crate) struct Sending {
    /// Server to publish to; of several, the next is tried when one fails. Repeatable. Else those
    /// in the variable AMPS_SERVER, separated by spaces, else tcp://127.0.0.1:9007/amps/json.
    #[arg(long, value_name = "URI")]
    pub(crate) server: Vec<String>,
    #[command(flatten)]
    pub(crate) login: Login,
    #[command(flatten)]
    pub(crate) tls: Tls,
    #[command(flatten)]
    pub(crate) nats: Nats,
    #[command(flatten)]
    pub(crate) watching: Watching,
    /// How long to wait for acknowledgements at the end, and for room while the store is full.
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = units::duration)]
    pub(crate) flush_timeout: Duration,
    /// Say this often what is published and what waits; under --json in objects "status".
    #[arg(long, value_name = "DURATION", value_parser = units::interval)]
    pub(crate) status_interval: Option<Duration>,
    /// Should the file of the store be removed while it is open: write what is left at the end to
    /// this new store.
    #[arg(long, value_name = "FILE", requires = "store")]
    pub(crate) evacuate_to: Option<PathBuf>,
    /// Mode of a store that is created now, as in 640, in place of 600; with --evacuate-to of that one,
    /// never more open than the store itself.
    #[arg(long, value_name = "OCTAL", value_parser = units::mode, requires = "store")]
    pub(crate) mode: Option<u32>,
    /// Send each message's sequence as command id, for servers whose refusals name no message
    /// otherwise.
    #[arg(long)]
    pub(crate) publish_ids: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Publish {
    /// Topic to publish to.
    #[arg(long)]
    pub(crate) topic: String,
    #[command(flatten)]
    pub(crate) sending: Sending,
    /// Start a sandbox server inside this process, for this run, and publish to it.
    #[arg(long, conflicts_with = "server")]
    pub(crate) sandbox: bool,
    /// The store: created when missing. Without one, messages live in memory only.
    #[arg(long, value_name = "FILE")]
    pub(crate) store: Option<PathBuf>,
    /// Byte cap of a store that is created now, as in 64MiB; at least 64KiB. One that exists is
    /// raised to it, for good, or it is said why not.
    #[arg(long, value_name = "SIZE", value_parser = units::size)]
    pub(crate) capacity: Option<u64>,
    /// Largest message that a store takes which is created now, as in 64KiB; the default is 1MiB with
    /// all that travels with it, or a quarter of a sixteenth of a capacity below 64MiB.
    ///
    /// It decides the size of the file, which begins with sixteen such messages and a little: 1052 KiB
    /// for 64KiB. The capacity must have room for six times four. Up to 32767KiB.
    #[arg(long, value_name = "SIZE", value_parser = units::size)]
    pub(crate) max_message: Option<u64>,
    /// How long to wait for a store that another process has open or a repair is reading.
    #[arg(long, value_name = "DURATION", default_value = "0s", value_parser = units::duration)]
    pub(crate) lock_timeout: Duration,
    /// Name to log on with; the default is an id made and kept by the store.
    #[arg(long, value_name = "NAME")]
    pub(crate) client_name: Option<String>,
    /// Input; "-" is standard input.
    #[arg(long, value_name = "FILE", default_value = "-")]
    pub(crate) file: PathBuf,
    /// Merge each message into the record it identifies, instead of replacing it.
    #[arg(long)]
    pub(crate) delta: bool,
    /// Continue behind the last line that is safely in the store, in the same input.
    ///
    /// Each message remembers where its line ends, and a checksum of everything up to there: an
    /// input that does not begin with the same lines is an error. A last line without a newline
    /// waits for the next run.
    #[arg(long, requires = "store")]
    pub(crate) resume: bool,
    /// With --resume: go on with this line, counted from 1, whatever input it was before.
    #[arg(long, value_name = "LINE", requires = "store", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) resume_from: Option<u64>,
    /// With --resume: the input is complete, so that a last line without a newline is one.
    #[arg(long)]
    pub(crate) final_line: bool,
    /// Publish at most this many messages a second.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) rate: Option<u64>,
    /// When messages are safe from a power cut: os, interval:DURATION or disk; the last two
    /// need --store.
    #[arg(long, value_name = "LEVEL", default_value = "os", value_parser = units::level)]
    pub(crate) durability: Level,
    /// Say each line that is in the store, as soon as it is.
    #[arg(long, hide = true)]
    pub(crate) announce: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Subscribe {
    /// Topic, or a regular expression over topics; at nats:// and tls:// servers one topic.
    #[arg(long)]
    pub(crate) topic: String,
    /// Server to subscribe at; of several, the next is tried when one fails. Repeatable. Else
    /// those in the variable AMPS_SERVER, separated by spaces, else tcp://127.0.0.1:9007/amps/json.
    /// At nats:// and tls:// servers the stream is read that takes the topic; nothing is changed
    /// in it.
    #[arg(long, value_name = "URI")]
    pub(crate) server: Vec<String>,
    #[command(flatten)]
    pub(crate) login: Login,
    #[command(flatten)]
    pub(crate) nats: NatsLogin,
    #[command(flatten)]
    pub(crate) tls: Tls,
    #[command(flatten)]
    pub(crate) watching: Watching,
    /// Stop after this many messages.
    #[arg(short = 'n', long, value_name = "N")]
    pub(crate) count: Option<u64>,
    /// Begin with the first message the server remembers.
    #[arg(long)]
    pub(crate) from_start: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Drain {
    /// The store; it must exist.
    #[arg(long, value_name = "FILE")]
    pub(crate) store: PathBuf,
    /// How long to wait for it while another process has it open or a repair is reading it.
    #[arg(long, value_name = "DURATION", default_value = "0s", value_parser = units::duration)]
    pub(crate) lock_timeout: Duration,
    #[command(flatten)]
    pub(crate) sending: Sending,
}

#[derive(Debug, Subcommand)]
pub(crate) enum StoreCommand {
    /// Numbers, sizes, owner, and how recovery would end.
    Info(StoreInfo),
    /// The unsettled messages in order.
    List(StoreList),
    /// One message: envelope and payload, settled or not, while its bytes are there.
    Get(SeqFile),
    /// Every record of the file, with its place, its worth and what it says.
    Dump(StoreDump),
    /// Check every record; say what was checked.
    Verify {
        /// The store.
        file: PathBuf,
    },
    /// Save what is intact into a new store; say exactly what could not be saved.
    ///
    /// The old file is only read, and nobody may have it open meanwhile: a publisher that tries is
    /// told that a repair is reading it. The new store has the same client name, sequences, order and
    /// rejections; messages set aside behind a hole are saved too.
    ///
    /// Also where both superblocks are damaged. What only they know is gone then: whether the store
    /// was evacuated to another file, and what was sent. The new store goes on above what the server
    /// knows of its name, and sends all that was saved, so that messages may reach the server twice.
    Repair(StoreRepair),
    /// Messages as JSON lines, every field of the envelope; import reads them.
    Export(StoreExport),
    /// Make a new store of the messages that export wrote.
    ///
    /// They get new sequences. Settled messages are passed over; rejections wait again. When a
    /// line cannot be taken, no store is left behind.
    Import(StoreImport),
    /// Draw the ring of segments.
    Map {
        /// The store.
        file: PathBuf,
    },
}

#[derive(Debug, Args)]
pub(crate) struct StoreInfo {
    /// The store.
    pub(crate) file: PathBuf,
    /// Write a report as one HTML page to this new file; it needs nothing else to be shown.
    #[arg(long, value_name = "OUT")]
    pub(crate) html: Option<PathBuf>,
    /// Mode of that file, as in 640, in place of 600; never more open than the store itself.
    #[arg(long, value_name = "OCTAL", value_parser = units::mode, requires = "html")]
    pub(crate) mode: Option<u32>,
}

/// Which messages, for list, dump and export.
#[derive(Debug, Args)]
pub(crate) struct Select {
    /// Only messages for this topic.
    #[arg(long)]
    pub(crate) topic: Option<String>,
    /// Only this sequence and higher ones.
    #[arg(long, value_name = "SEQ")]
    pub(crate) first: Option<u64>,
    /// Only this sequence and lower ones.
    #[arg(long, value_name = "SEQ")]
    pub(crate) last: Option<u64>,
    /// Only messages published at this time or later: 2026-01-31, 2026-01-31T12:00:00Z, or
    /// how long ago, as in 15m.
    #[arg(long, value_name = "TIME", value_parser = units::time)]
    pub(crate) since: Option<u64>,
    /// Only messages published up to this time.
    #[arg(long, value_name = "TIME", value_parser = units::time)]
    pub(crate) until: Option<u64>,
}

#[derive(Debug, Args)]
pub(crate) struct StoreList {
    /// The store.
    pub(crate) file: PathBuf,
    /// Settled, rejected and set aside messages too, while their bytes are there.
    #[arg(long)]
    pub(crate) all: bool,
    #[command(flatten)]
    pub(crate) select: Select,
}

#[derive(Debug, Args)]
pub(crate) struct StoreDump {
    /// The store.
    pub(crate) file: PathBuf,
    /// Show payloads in hexadecimal even when they are text.
    #[arg(long)]
    pub(crate) hex: bool,
    #[command(flatten)]
    pub(crate) select: Select,
}

#[derive(Debug, Args)]
pub(crate) struct StoreRepair {
    /// The store.
    pub(crate) file: PathBuf,
    /// The new store; there must be nothing at its place.
    #[arg(long, value_name = "FILE")]
    pub(crate) to: PathBuf,
    /// Mode of the new store, as in 640, in place of 600; never more open than the old one.
    #[arg(long, value_name = "OCTAL", value_parser = units::mode)]
    pub(crate) mode: Option<u32>,
    /// Also where the file system has no locks: you know that nobody has the store open.
    #[arg(long)]
    pub(crate) unlocked: bool,
    /// Also a store that was evacuated: you know that nobody sends from where it went.
    #[arg(long)]
    pub(crate) evacuated: bool,
    /// Client name of the new store where both superblocks of the old one are damaged. Else the one
    /// that it says for good, or that both still show alike, else one made now.
    #[arg(long, value_name = "NAME")]
    pub(crate) client_name: Option<String>,
    /// Where both superblocks are damaged: the highest sequence that is known to have been used, if
    /// that is above what the file still shows.
    #[arg(long, value_name = "N")]
    pub(crate) number_floor: Option<u64>,
}

#[derive(Debug, Args)]
pub(crate) struct StoreExport {
    /// The store.
    pub(crate) file: PathBuf,
    /// Settled and set aside messages too, while their bytes are there.
    #[arg(long)]
    pub(crate) all: bool,
    #[command(flatten)]
    pub(crate) select: Select,
}

#[derive(Debug, Args)]
pub(crate) struct StoreImport {
    /// The new store; there must be nothing at its place.
    pub(crate) file: PathBuf,
    /// What export wrote; "-" is standard input.
    #[arg(long, value_name = "FILE", default_value = "-")]
    pub(crate) from: PathBuf,
    /// Byte cap of the new store, as in 64MiB; at least 64KiB.
    #[arg(long, value_name = "SIZE", value_parser = units::size)]
    pub(crate) capacity: Option<u64>,
    /// Largest message that the new store takes, as in 64KiB; see the same of publish.
    #[arg(long, value_name = "SIZE", value_parser = units::size)]
    pub(crate) max_message: Option<u64>,
    /// Mode of the new store, as in 640, in place of 600; never more open than the file it is made
    /// of.
    #[arg(long, value_name = "OCTAL", value_parser = units::mode)]
    pub(crate) mode: Option<u32>,
    /// Name of the client the new store belongs to; the default is an id made now.
    #[arg(long, value_name = "NAME")]
    pub(crate) client_name: Option<String>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum FailedCommand {
    /// The rejections that wait.
    List {
        /// The store.
        file: PathBuf,
        #[command(flatten)]
        select: Select,
    },
    /// One rejection, with the original message.
    Show(SeqFile),
    /// Take over rejections: they leave the store.
    Accept(Chosen),
    /// Publish rejected messages again under new sequences.
    ///
    /// With one sequence, --topic is the topic to publish that message to; else it chooses
    /// messages.
    Requeue(RequeueArgs),
    /// Give up on messages that no server settles, such as one that breaks every connection: each
    /// becomes a rejection that waits.
    GiveUp(Chosen),
    /// All rejections with their messages, as the JSON lines that store import reads.
    Export {
        /// The store.
        file: PathBuf,
        #[command(flatten)]
        select: Select,
    },
}

impl FailedCommand {
    /// Whether it opens the store and listens for signals while it works.
    pub(crate) fn changes(&self) -> bool {
        matches!(
            self,
            FailedCommand::Accept(_) | FailedCommand::Requeue(_) | FailedCommand::GiveUp(_)
        )
    }
}

/// Which messages to change, and in which store.
#[derive(Debug, Args)]
pub(crate) struct Chosen {
    /// Sequences, as in 17, or ranges of them, as in 17-20, and the store behind them.
    #[arg(value_name = "SEQ… FILE", required = true, num_args = 1..)]
    pub(crate) what: Vec<String>,
    /// All that wait.
    #[arg(long)]
    pub(crate) all: bool,
    /// Say which it would be, and change nothing.
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// How long to wait for a store that another process has open or a repair is reading.
    #[arg(long, value_name = "DURATION", default_value = "0s", value_parser = units::duration)]
    pub(crate) lock_timeout: Duration,
    #[command(flatten)]
    pub(crate) select: Select,
}

#[derive(Debug, Args)]
pub(crate) struct RequeueArgs {
    #[command(flatten)]
    pub(crate) chosen: Chosen,
    /// Publish what this file holds, byte for byte, instead of the message's own payload. For one
    /// message; "-" is standard input.
    #[arg(long, value_name = "FILE")]
    pub(crate) payload: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct SeqFile {
    /// Sequence of the message.
    pub(crate) seq: u64,
    /// The store.
    pub(crate) file: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct Demo {
    /// Keep the store and the journal in this directory, for a look around afterwards.
    #[arg(long, value_name = "DIR")]
    pub(crate) keep: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum TortureCommand {
    /// Append, sync and settle for ever, saying what must survive.
    Write(TortureWrite),
    /// Recover read-only and write the surviving messages as binary frames.
    Dump(TortureDump),
}

#[derive(Debug, Args)]
pub(crate) struct TortureWrite {
    /// Directory of the store; the store is the file torture.store in it.
    #[arg(long)]
    pub(crate) dir: PathBuf,
    /// Seed of every payload.
    #[arg(long)]
    pub(crate) seed: u64,
    /// Number of this run, part of every payload.
    #[arg(long)]
    pub(crate) run: u64,
    /// Byte cap of the whole file, reserved in full at creation.
    #[arg(long, value_name = "BYTES", value_parser = units::size)]
    pub(crate) capacity: Option<u64>,
    /// Shortest payload.
    #[arg(long, default_value_t = 16)]
    pub(crate) min_len: u64,
    /// Longest payload.
    #[arg(long, default_value_t = 600, value_parser = clap::value_parser!(u64).range(..=(1 << 30)))]
    pub(crate) max_len: u64,
    /// Messages between two syncs.
    #[arg(long, value_name = "K", value_parser = clap::value_parser!(u64).range(1..=(1 << 40)))]
    pub(crate) sync_every: u64,
    /// Unsettled messages kept; settling starts at twice as many.
    #[arg(long, value_name = "L")]
    pub(crate) discard_lag: u64,
    /// Messages to append; 0 is for ever.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) count: u64,
    /// Threads that append.
    #[arg(long, value_name = "T", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=1024))]
    pub(crate) threads: u64,
}

#[derive(Debug, Args)]
pub(crate) struct TortureDump {
    /// Directory of the store.
    #[arg(long)]
    pub(crate) dir: PathBuf,
    /// Keep what is intact on both sides of damage.
    #[arg(long)]
    pub(crate) salvage: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Bench {
    /// What to measure, of T1 to T12, T15 and T16; everything if nothing is named.
    #[arg(value_name = "TARGET", value_parser = target)]
    pub(crate) only: Vec<String>,
    /// Directory for the files of the run, removed again; 2 GiB must be free.
    #[arg(long, value_name = "DIR", default_value = ".")]
    pub(crate) dir: PathBuf,
    /// Rounds of floor and store in turn.
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) rounds: u32,
    /// A tenth of the messages: a first impression.
    #[arg(long)]
    pub(crate) quick: bool,
}

fn target(text: &str) -> Result<String, String> {
    let name = text.to_ascii_uppercase();
    let number: Option<u32> = name.strip_prefix('T').and_then(|n| n.parse().ok());
    match number {
        Some(1..=12 | 15 | 16) => Ok(name),
        _ => Err("write T1 to T12, T15 or T16".to_owned()),
    }
}
