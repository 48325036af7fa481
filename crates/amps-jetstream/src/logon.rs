//! What a server says of itself, who we are to it, and the line that says so.

use std::fmt;

use amps_delivery::{LinkEnd, Reason};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use nkeys::KeyPair;
use serde::{Deserialize, Serialize};

use crate::codec::{self, PING};
use crate::config::Config;

/// What a server says of itself, as far as a publisher has to know.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct ServerInfo {
    /// Its version.
    #[serde(default)]
    pub version: String,
    /// Its name.
    #[serde(default)]
    pub server_name: String,
    /// The largest message it takes, headers included.
    #[serde(default)]
    pub max_payload: usize,
    /// Messages may have headers.
    #[serde(default)]
    pub headers: bool,
    /// It wants a connection that is encrypted.
    #[serde(default)]
    pub tls_required: bool,
    /// What it wants signed.
    pub nonce: Option<String>,
    /// It is about to stop, and wants its clients to go.
    #[serde(default)]
    pub ldm: bool,
}

/// Who logs on. What is secret does not show in `{:?}`.
#[derive(Clone, Default)]
#[non_exhaustive]
pub enum Credentials {
    /// Nobody in particular.
    #[default]
    None,
    /// A user with a password.
    User {
        /// The name.
        user: String,
        /// The password.
        password: String,
    },
    /// Whoever knows this.
    Token(String),
    /// Whoever has the private half of a key pair that the server knows: its seed, `SU…`.
    Nkey {
        /// The seed.
        seed: String,
    },
    /// A user whom an account vouches for: the two parts of a `.creds` file.
    Vouched {
        /// The account's word.
        jwt: String,
        /// The seed of the user's key.
        seed: String,
    },
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Credentials::None => "None",
            Credentials::User { .. } => "User",
            Credentials::Token(_) => "Token",
            Credentials::Nkey { .. } => "Nkey",
            Credentials::Vouched { .. } => "Vouched",
        })
    }
}

/// Credentials that cannot be used. None of their words are in it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CredentialsError {
    /// The text lacks a part.
    #[error("no {0} in the credentials; a .creds file has a user's JWT and the seed of its key")]
    Lacks(&'static str),
    /// It is not a seed.
    #[error("the seed is not one of an nkey: {0}; it begins with SU")]
    Seed(String),
    /// There is nothing to sign.
    #[error("the server asks for no signature: it does not know nkeys, or has none set up")]
    NoNonce,
}

impl Credentials {
    /// What a `.creds` file says.
    ///
    /// # Errors
    /// It lacks a part, or its seed is none.
    pub fn from_creds(text: &str) -> Result<Self, CredentialsError> {
        let jwt = between(text, "NATS USER JWT").ok_or(CredentialsError::Lacks("JWT"))?;
        let seed = between(text, "USER NKEY SEED").ok_or(CredentialsError::Lacks("seed"))?;
        key(seed)?;
        Ok(Credentials::Vouched {
            jwt: jwt.to_owned(),
            seed: seed.to_owned(),
        })
    }

    /// The user whose key has this seed.
    ///
    /// # Errors
    /// It is not a seed.
    pub fn from_seed(seed: &str) -> Result<Self, CredentialsError> {
        let seed = seed.trim();
        key(seed)?;
        Ok(Credentials::Nkey {
            seed: seed.to_owned(),
        })
    }
}

/// The line behind the one that begins a part, whose dashes differ between writers of such files.
fn between<'a>(text: &'a str, part: &str) -> Option<&'a str> {
    let begins = |line: &str| {
        let words = line.trim().trim_matches('-');
        line.trim().starts_with("---") && words == format!("BEGIN {part}")
    };
    let mut lines = text.lines().skip_while(|line| !begins(line)).skip(1);
    let line = lines.find(|line| !line.trim().is_empty())?.trim();
    (!line.starts_with("---")).then_some(line)
}

fn key(seed: &str) -> Result<KeyPair, CredentialsError> {
    // Its own words may hold what it was given.
    KeyPair::from_seed(seed).map_err(|error| CredentialsError::Seed(format!("{:?}", error.kind())))
}

/// What is said at the beginning of a connection.
#[derive(Debug, Serialize)]
struct Connect<'a> {
    verbose: bool,
    pedantic: bool,
    tls_required: bool,
    name: &'a str,
    lang: &'static str,
    version: &'static str,
    protocol: u8,
    headers: bool,
    no_responders: bool,
    echo: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    user: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pass: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    auth_token: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    jwt: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    nkey: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sig: Option<String>,
}

/// The server's first word, and what it says later when something of it has changed.
///
/// # Errors
/// It cannot be read.
pub(crate) fn info(json: &[u8]) -> Result<ServerInfo, LinkEnd> {
    serde_json::from_slice(json)
        .map_err(|error| LinkEnd::Protocol(format!("its INFO cannot be read: {error}")))
}

/// Appends the answer to a server's first word: who we are, where answers come to, and the question
/// whether it took that.
///
/// # Errors
/// It is no server for us, or there is nothing to log on with.
pub(crate) fn hello(
    out: &mut Vec<u8>,
    server: &ServerInfo,
    name: &str,
    config: &Config,
    inbox: &str,
) -> Result<(), LinkEnd> {
    if !server.headers {
        let version = &server.version;
        let why = format!("nats-server {version} has no headers; 2.2 is the first that does");
        return Err(LinkEnd::Unusable(why));
    }
    if server.tls_required && !config.tls {
        let why = "the server asks for an encrypted connection, and this one is not";
        return Err(LinkEnd::Unusable(why.to_owned()));
    }
    connect(out, name, config.tls, &config.credentials, server)
        .map_err(|error| LinkEnd::Authenticator(error.to_string()))?;
    codec::sub(out, &format!("{inbox}>"), 1);
    out.extend_from_slice(PING);
    Ok(())
}

/// What an error that the server tells means for the link, whoever uses it.
pub(crate) fn wrong(text: &str) -> LinkEnd {
    let lower = text.to_ascii_lowercase();
    if lower.starts_with("permissions violation for subscription") {
        let why = format!("{text}: no answer would arrive; name an inbox prefix that may be");
        return LinkEnd::Unusable(why);
    }
    if lower.starts_with("permissions violation") {
        return LinkEnd::Unusable(text.to_owned());
    }
    if lower.contains("authorization violation") || lower.contains("authentication") {
        return LinkEnd::LogonRefused(Reason::new(text));
    }
    LinkEnd::Io(format!("the server says: {text}"))
}

/// Why a question about streams is answered by nobody.
pub(crate) const NO_JETSTREAM: &str = "nothing answers for JetStream at this server: it is switched \
    off there, or for this account, or has another domain";

/// Appends the line that logs on.
///
/// # Errors
/// The server's question cannot be signed.
fn connect(
    out: &mut Vec<u8>,
    name: &str,
    tls: bool,
    credentials: &Credentials,
    info: &ServerInfo,
) -> Result<(), CredentialsError> {
    let mut said = Connect {
        verbose: false,
        pedantic: false,
        tls_required: tls,
        name,
        lang: "rust",
        version: env!("CARGO_PKG_VERSION"),
        protocol: 1,
        headers: true,
        no_responders: true,
        echo: false,
        user: None,
        pass: None,
        auth_token: None,
        jwt: None,
        nkey: None,
        sig: None,
    };
    let sign = |key: &KeyPair| {
        let nonce = info.nonce.as_deref().ok_or(CredentialsError::NoNonce)?;
        let signed = key.sign(nonce.as_bytes());
        let signed = signed.map_err(|error| CredentialsError::Seed(format!("{:?}", error.kind())));
        Ok(URL_SAFE_NO_PAD.encode(signed?))
    };
    match credentials {
        Credentials::None => {}
        Credentials::User { user, password } => {
            said.user = Some(user);
            said.pass = Some(password);
        }
        Credentials::Token(token) => said.auth_token = Some(token),
        Credentials::Nkey { seed } => {
            let key = key(seed)?;
            (said.nkey, said.sig) = (Some(key.public_key()), Some(sign(&key)?));
        }
        Credentials::Vouched { jwt, seed } => {
            said.jwt = Some(jwt);
            said.sig = Some(sign(&key(seed)?)?);
        }
    }
    out.extend_from_slice(b"CONNECT ");
    out.extend_from_slice(serde_json::json!(said).to_string().as_bytes());
    out.extend_from_slice(b"\r\n");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(credentials: &Credentials, info: &ServerInfo) -> serde_json::Value {
        let mut out = Vec::new();
        connect(&mut out, "me", false, credentials, info).unwrap();
        let line = String::from_utf8(out).unwrap();
        let json = line
            .strip_prefix("CONNECT ")
            .and_then(|l| l.strip_suffix("\r\n"));
        serde_json::from_str(json.unwrap()).unwrap()
    }

    fn asking() -> ServerInfo {
        ServerInfo {
            nonce: Some("nonce-1".to_owned()),
            ..ServerInfo::default()
        }
    }

    #[test]
    fn a_logon_says_who_and_what() {
        let plain = said(&Credentials::None, &ServerInfo::default());
        let expected = serde_json::json!({
            "verbose": false, "pedantic": false, "tls_required": false, "name": "me",
            "lang": "rust", "version": env!("CARGO_PKG_VERSION"), "protocol": 1,
            "headers": true, "no_responders": true, "echo": false,
        });
        assert_eq!(plain, expected);
        let user = Credentials::User {
            user: "u".to_owned(),
            password: "p\"".to_owned(),
        };
        let user = said(&user, &ServerInfo::default());
        assert_eq!((&user["user"], &user["pass"]), (&"u".into(), &"p\"".into()));
        let token = said(&Credentials::Token("t".to_owned()), &ServerInfo::default());
        assert_eq!(token["auth_token"], "t");
    }

    #[test]
    fn a_key_signs_what_the_server_asks() {
        let pair = KeyPair::new_user();
        let seed = pair.seed().unwrap();
        let said = said(&Credentials::from_seed(&seed).unwrap(), &asking());
        assert_eq!(said["nkey"], pair.public_key());
        let sig = URL_SAFE_NO_PAD
            .decode(said["sig"].as_str().unwrap())
            .unwrap();
        pair.verify(b"nonce-1", &sig).unwrap();

        let credentials = Credentials::from_seed(&seed).unwrap();
        let mut out = Vec::new();
        let silent = connect(&mut out, "me", false, &credentials, &ServerInfo::default());
        assert_eq!(silent, Err(CredentialsError::NoNonce));
        assert!(out.is_empty());
    }

    #[test]
    fn a_creds_file_has_two_parts() {
        let pair = KeyPair::new_user();
        let seed = pair.seed().unwrap();
        let file = format!(
            "-----BEGIN NATS USER JWT-----\neyJ0.abc\n------END NATS USER JWT------\n\n\
             ************************* IMPORTANT *************************\n\n\
             -----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
        );
        for file in [file.clone(), file.replace('\n', "\r\n")] {
            let credentials = Credentials::from_creds(&file).unwrap();
            let said = said(&credentials, &asking());
            assert_eq!(said["jwt"], "eyJ0.abc");
            assert_eq!(said["nkey"], serde_json::Value::Null, "the JWT names it");
            let sig = URL_SAFE_NO_PAD
                .decode(said["sig"].as_str().unwrap())
                .unwrap();
            pair.verify(b"nonce-1", &sig).unwrap();
        }
        let half = file.split("*****").next().unwrap();
        let lacks = Credentials::from_creds(half).unwrap_err();
        assert_eq!(lacks, CredentialsError::Lacks("seed"));
        assert!(Credentials::from_creds("").is_err());
        assert!(Credentials::from_creds(&file.replace(&seed, "")).is_err());
    }

    #[test]
    fn nothing_secret_is_shown() {
        let wrong = Credentials::from_seed("SUSECRETSECRET").unwrap_err();
        assert!(!wrong.to_string().contains("SECRET"), "{wrong}");
        let seed = KeyPair::new_user().seed().unwrap();
        let shown = format!("{:?}", Credentials::from_seed(&seed).unwrap());
        assert_eq!(shown, "Nkey");
        let shown = format!("{:?}", Credentials::Token("secret".to_owned()));
        assert_eq!(shown, "Token");
    }
}
