//! How a sandbox is configured.

use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// A message that a rule may refuse.
#[derive(Clone, Copy, Debug)]
pub struct Candidate<'a> {
    /// The publisher.
    pub client_name: &'a str,
    /// The sequence on the wire.
    pub sequence: Option<u64>,
    /// The topic.
    pub topic: &'a str,
    /// The message.
    pub body: &'a [u8],
}

/// In which form the server answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Dialect {
    /// As AMPS documents it.
    #[default]
    Documented,
    /// As another implementation does (`docs/protocol.md` §10): no figure at logon, every
    /// persisted ack at once and with its command id, refusals as a `processed` failure with only
    /// the command id, and no memory of duplicates beyond a link.
    PerMessage,
}

type Rule = Arc<dyn Fn(&Candidate<'_>) -> Option<String> + Send + Sync>;

/// Everything about a [`Server`](crate::Server) that is decided before it starts.
#[derive(Clone)]
pub struct Config {
    pub(crate) ack_interval: Duration,
    pub(crate) dialect: Dialect,
    pub(crate) users: Vec<(String, String)>,
    pub(crate) challenge: bool,
    pub(crate) logon_within: Duration,
    pub(crate) max_subscriptions: usize,
    pub(crate) message_type: Option<String>,
    pub(crate) unlogged: HashSet<String>,
    pub(crate) sow: HashSet<String>,
    refused_topics: HashSet<String>,
    json_topics: HashSet<String>,
    json_everywhere: bool,
    rules: Vec<Rule>,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            ack_interval: Duration::from_secs(1),
            dialect: Dialect::Documented,
            users: Vec::new(),
            challenge: false,
            logon_within: Duration::from_secs(10),
            max_subscriptions: 256,
            message_type: None,
            unlogged: HashSet::new(),
            sow: HashSet::new(),
            refused_topics: HashSet::new(),
            json_topics: HashSet::new(),
            json_everywhere: false,
            rules: Vec::new(),
        }
    }
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config")
            .field("ack_interval", &self.ack_interval)
            .field("dialect", &self.dialect)
            .field("users", &self.users.len())
            .field("refused_topics", &self.refused_topics)
            .finish_non_exhaustive()
    }
}

impl Config {
    /// A server without users that accepts everything, logs every topic and conflates acks over
    /// one second.
    pub fn new() -> Self {
        Config::default()
    }

    /// Sets the interval over which acks are conflated. With zero, acks are sent after every
    /// read.
    #[must_use]
    pub fn ack_interval(mut self, interval: Duration) -> Self {
        self.ack_interval = interval;
        self
    }

    /// Sets the form of the answers.
    #[must_use]
    pub fn dialect(mut self, dialect: Dialect) -> Self {
        self.dialect = dialect;
        self
    }

    /// Adds a user; with at least one, a logon needs user and password. After ten wrong
    /// passwords in a row, over any number of connections, nobody logs on as that user for
    /// ten seconds, whatever the password.
    #[must_use]
    pub fn user(mut self, user: impl Into<String>, password: impl Into<String>) -> Self {
        self.users.push((user.into(), password.into()));
        self
    }

    /// Challenges logons: the first is answered `retry` with a challenge in `pw`, and the
    /// next must carry the challenge, a colon and the password. The form of the challenge
    /// is the sandbox's own; the exchange is AMPS'.
    #[must_use]
    pub fn challenge(mut self) -> Self {
        self.challenge = true;
        self
    }

    /// Closes a connection that has not logged on after this time, challenges included; 10 s by
    /// default. Real servers do not wait for ever either, and a connection that says nothing
    /// takes a place that somebody else may need.
    #[must_use]
    pub fn logon_within(mut self, time: Duration) -> Self {
        self.logon_within = time;
        self
    }

    /// How many subscriptions a link may have, 256 by default; more are refused.
    #[must_use]
    pub fn max_subscriptions(mut self, count: usize) -> Self {
        self.max_subscriptions = count;
        self
    }

    /// Refuses connections whose message type is not this one.
    #[must_use]
    pub fn message_type(mut self, message_type: impl Into<String>) -> Self {
        self.message_type = Some(message_type.into());
        self
    }

    /// Refuses every message of a topic, as `not entitled`.
    #[must_use]
    pub fn reject_topic(mut self, topic: impl Into<String>) -> Self {
        self.refused_topics.insert(topic.into());
        self
    }

    /// Refuses messages that are not JSON, as `invalid message`, of one topic or, with `*`, of
    /// any, on connections whose message type is `json` or not stated.
    #[must_use]
    pub fn reject_invalid_json(mut self, topic: impl Into<String>) -> Self {
        match topic.into() {
            any if any == "*" => self.json_everywhere = true,
            topic => {
                self.json_topics.insert(topic);
            }
        }
        self
    }

    /// Refuses messages for which `rule` returns a reason.
    #[must_use]
    pub fn reject_when(
        mut self,
        rule: impl Fn(&Candidate<'_>) -> Option<String> + Send + Sync + 'static,
    ) -> Self {
        self.rules.push(Arc::new(rule));
        self
    }

    /// Keeps a topic out of the log: its messages are acked one by one, with their command ids,
    /// reach only those who are subscribed at the time, and are forgotten.
    #[must_use]
    pub fn unlogged_topic(mut self, topic: impl Into<String>) -> Self {
        self.unlogged.insert(topic.into());
        self
    }

    /// Keeps the last message per key of a topic, so that it can be queried and deleted.
    #[must_use]
    pub fn sow_topic(mut self, topic: impl Into<String>) -> Self {
        self.sow.insert(topic.into());
        self
    }

    /// Why a publish is refused, if it is.
    pub(crate) fn refusal(&self, candidate: &Candidate<'_>, json: bool) -> Option<String> {
        if candidate.topic.is_empty() {
            return Some("invalid topic".to_owned());
        }
        if self.refused_topics.contains(candidate.topic) {
            return Some("not entitled".to_owned());
        }
        let strict = self.json_everywhere || self.json_topics.contains(candidate.topic);
        if json
            && strict
            && serde_json::from_slice::<serde::de::IgnoredAny>(candidate.body).is_err()
        {
            return Some("invalid message".to_owned());
        }
        self.rules.iter().find_map(|rule| rule(candidate))
    }
}
