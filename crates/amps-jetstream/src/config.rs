//! How a link to JetStream behaves, and for whom it is.

use std::time::Duration;

use crate::logon::Credentials;

/// Whether the messages are stored in the order in which they were published.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// [`Chained`](Self::Chained) in a stream that [was made](Create) for this publisher, else
    /// [`Unchained`](Self::Unchained).
    #[default]
    Auto,
    /// Each message says in which place of the stream it belongs, and is not stored anywhere else.
    /// The stream is this publisher's alone. Then what is stored has no holes, is in order, and
    /// its last message tells a restarted publisher where to go on.
    Chained,
    /// The stream has other publishers, too. The server may turn a message away and store the
    /// next. Behind a lost link messages are looked for by their ids; one that is not found goes
    /// out again, and is dropped if the server still remembers its id.
    Unchained,
}

/// A stream to make if none takes the topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Create {
    /// Its name.
    pub name: String,
    /// How many servers hold it.
    pub replicas: u32,
}

/// How a link behaves.
#[derive(Clone, Debug)]
pub struct Config {
    /// The topic by which the stream is found.
    pub topic: String,
    /// The stream, if it is known: then it is not looked for.
    pub stream: Option<String>,
    /// Make one if none takes the topic.
    pub create: Option<Create>,
    /// In which order messages are stored.
    pub mode: Mode,
    /// The JetStream domain, if it is not the one of the server that is connected to.
    pub domain: Option<String>,
    /// What the subjects begin with to which servers answer: for accounts that may not subscribe
    /// to `_INBOX.>`.
    pub inbox_prefix: String,
    /// Who logs on.
    pub credentials: Credentials,
    /// The stream of bytes is encrypted.
    pub tls: bool,
    /// Time for each answer of the server, but for those to messages.
    pub timeout: Duration,
    /// After so long a silence the server is asked whether it is there; after twice as long the
    /// link ends.
    pub heartbeat: Duration,
    /// Most messages without an answer. Servers since 2.11 turn away what is more than 10,000, of
    /// all publishers of a stream together.
    pub window: usize,
}

impl Config {
    /// For the stream that takes this topic.
    pub fn new(topic: impl Into<String>) -> Self {
        Config {
            topic: topic.into(),
            stream: None,
            create: None,
            mode: Mode::default(),
            domain: None,
            inbox_prefix: "_INBOX".to_owned(),
            credentials: Credentials::None,
            tls: false,
            timeout: Duration::from_secs(5),
            heartbeat: Duration::from_secs(15),
            window: 4_096,
        }
    }
}
