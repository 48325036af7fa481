//! What carries messages to the servers that were named: AMPS, or JetStream at those of NATS.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use amps_client::Transport as _;
use amps_client::connector::{Connector, TlsConnector};
use amps_client::jetstream::{
    self, Config, Create, Credentials, CredentialsError, JetStream, Mode, Reader,
};

use crate::args::{NatsLogin, Sending, Subscribe, Tls, Watching};
use crate::failure::{Exit, Failure};
use crate::signals::Stop;
use crate::tls;

/// What carries messages.
pub(crate) enum Carried {
    Amps(Arc<dyn Connector>),
    JetStream(Box<JetStream>),
}

/// A silence that is never too long.
const NEVER: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// Whether these are servers of NATS, decided before anything is created or opened.
///
/// # Errors
/// Some are and some are not.
fn is_nats(servers: &[String]) -> Result<bool, Failure> {
    let nats = |server: &&String| server.starts_with("nats://") || server.starts_with("tls://");
    match servers.iter().filter(nats).count() {
        0 => Ok(false),
        count if count == servers.len() => Ok(true),
        _ => Err(usage(
            "servers of NATS (nats://, tls://) and of AMPS cannot be mixed: what one has the other \
             does not know",
        )),
    }
}

/// What carries messages of this topic to these servers.
///
/// # Errors
/// An address, a file or an option that is of no use for them.
pub(crate) fn to(
    servers: &[String],
    sending: &Sending,
    topic: &str,
    stop: &Stop,
) -> Result<Carried, Failure> {
    if !is_nats(servers)? {
        if let Some(option) = sending.nats.given() {
            return Err(not_nats(option));
        }
        let connector = tls::connector(servers, &sending.tls, stop)?;
        return Ok(Carried::Amps(connector));
    }
    if sending.publish_ids {
        return Err(usage("--publish-ids is for servers of AMPS"));
    }
    let mut config = config(topic, &sending.watching, &sending.nats.login, stop)?;
    config.mode = sending.nats.order.unwrap_or(Mode::Auto);
    let replicas = 1;
    let create = |name: &String| Create {
        name: name.clone(),
        replicas,
    };
    config.create = sending.nats.create_stream.as_ref().map(create);
    let transport = match secured(servers, &sending.tls, stop)? {
        Some(tls) => jetstream::transport_with_tls(config, tls),
        None => jetstream::transport(config),
    };
    for server in servers {
        transport.name(server).map_err(bad_address)?;
    }
    Ok(Carried::JetStream(Box::new(transport)))
}

/// What reads this topic at these servers; none: they are of AMPS.
///
/// # Errors
/// An address, a file or an option that is of no use for them.
pub(crate) fn reader(
    servers: &[String],
    args: &Subscribe,
    stop: &Stop,
) -> Result<Option<Reader>, Failure> {
    if !is_nats(servers)? {
        return match args.nats.given() {
            None => Ok(None),
            Some(option) => Err(not_nats(option)),
        };
    }
    let config = config(&args.topic, &args.watching, &args.nats, stop)?;
    let opener = match secured(servers, &args.tls, stop)? {
        Some(tls) => jetstream::opener_with_tls(tls),
        None => jetstream::opener(),
    };
    for server in servers {
        jetstream::transport(config.clone())
            .name(server)
            .map_err(bad_address)?;
    }
    let reader = Reader::new(config, "amps subscribe", opener, args.from_start);
    let bad = |error| usage(format!("--topic: {error}"));
    reader.map(Some).map_err(bad)
}

fn config(
    topic: &str,
    watching: &Watching,
    login: &NatsLogin,
    stop: &Stop,
) -> Result<Config, Failure> {
    let mut config = Config::new(topic);
    config.heartbeat = watching.heartbeat.0.unwrap_or(NEVER);
    if let Some(file) = &login.creds {
        config.credentials = credentials(file, Credentials::from_creds, stop)?;
    }
    if let Some(file) = &login.nkey {
        config.credentials = credentials(file, Credentials::from_seed, stop)?;
    }
    Ok(config)
}

/// How connections are encrypted, if one is to be.
fn secured(servers: &[String], tls: &Tls, stop: &Stop) -> Result<Option<TlsConnector>, Failure> {
    let secured = servers.iter().any(|server| server.starts_with("tls://"));
    match (secured, tls.given()) {
        (true, _) => tls::made(tls, stop).map(Some),
        (false, None) => Ok(None),
        (false, Some(option)) => {
            let text = format!("{option} is for TLS, and no server is a tls:// one");
            Err(usage(text))
        }
    }
}

fn bad_address(error: String) -> Failure {
    usage(format!("bad server address: {error}"))
}

fn not_nats(option: &str) -> Failure {
    usage(format!(
        "{option} is for servers of NATS, and no server is a nats:// one"
    ))
}

fn credentials(
    file: &Path,
    parse: impl Fn(&str) -> Result<Credentials, CredentialsError>,
    stop: &Stop,
) -> Result<Credentials, Failure> {
    let wrong = |why: &dyn std::fmt::Display| {
        Failure::other(format!("cannot log on with {}: {why}", file.display()))
    };
    let text = tls::read(file, stop)?;
    let text = String::from_utf8(text).map_err(|_| wrong(&"it is not text"))?;
    parse(&text).map_err(|error| wrong(&error))
}

fn usage(text: impl Into<String>) -> Failure {
    Failure::new(Exit::Usage, text)
}
