//! Where a server is: `nats://[user[:password]@]host[:port]`, `tls://` for an encrypted connection.

use std::fmt;
use std::str::FromStr;

use crate::ids::unescape;
use crate::logon::Credentials;

/// The port of an address that has none.
const PORT: u16 = 4222;

/// Where a server is, and who logs on if the address says so. What is secret does not show, neither
/// in `{}` nor in `{:?}`.
#[derive(Clone)]
pub struct Address {
    tls: bool,
    host: String,
    port: u16,
    credentials: Option<Credentials>,
}

/// A text that is no address. What may be secret in it is not repeated.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AddressError {
    /// There is none of the schemes.
    #[error("write nats://host:4222, or tls://host:4222 for an encrypted connection")]
    Scheme,
    /// There is no host.
    #[error("no host; write nats://host:4222")]
    NoHost,
    /// It is not a port.
    #[error("what follows the host is no port; ports go from 1 to 65535")]
    Port,
    /// It is not a host.
    #[error("there is no host; IPv6 addresses go in brackets, as in [::1]:4222")]
    Host,
    /// Something follows the port.
    #[error("nothing follows the port; a stream is named elsewhere")]
    Path,
    /// A percent sign that is not followed by two hexadecimal digits, or no UTF-8.
    #[error("the part before @ is not percent-encoded text; write % as %25, @ as %40")]
    Encoding,
}

impl Address {
    /// Whether the connection is encrypted.
    pub fn is_encrypted(&self) -> bool {
        self.tls
    }

    /// The host; an IPv6 address is in brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Who logs on, if the address says so: a user with a password, or a token alone.
    pub fn credentials(&self) -> Option<&Credentials> {
        self.credentials.as_ref()
    }
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let (scheme, rest) = text.split_once("://").ok_or(AddressError::Scheme)?;
        let tls = match scheme {
            "nats" => false,
            "tls" => true,
            _ => return Err(AddressError::Scheme),
        };
        let (place, path) = match rest.rsplit_once('@') {
            None => rest.split_once('/').unwrap_or((rest, "")),
            Some((_, place)) => place.split_once('/').unwrap_or((place, "")),
        };
        if !path.is_empty() || place.contains(['?', '#']) {
            return Err(AddressError::Path);
        }
        let credentials = match rest.rsplit_once('@') {
            None => None,
            Some((who, _)) => Some(credentials(who).ok_or(AddressError::Encoding)?),
        };
        let (host, port) = match place.rsplit_once(':') {
            // The colons of an address in brackets are its own.
            Some((_, end)) if end.contains(']') => (place, None),
            Some((host, port)) => (host, Some(port)),
            None => (place, None),
        };
        let port = match port {
            None => PORT,
            Some(text) => {
                let plain = text.bytes().all(|byte| byte.is_ascii_digit());
                let port = text.parse().ok().filter(|port| plain && *port > 0);
                port.ok_or(AddressError::Port)?
            }
        };
        if host.is_empty() {
            return Err(AddressError::NoHost);
        }
        if !is_host(host) {
            return Err(AddressError::Host);
        }
        Ok(Address {
            tls,
            host: host.to_owned(),
            port,
            credentials,
        })
    }
}

fn is_host(host: &str) -> bool {
    if let Some(inner) = host.strip_prefix('[') {
        let inner = inner.strip_suffix(']');
        return inner.is_some_and(|inner| inner.parse::<std::net::Ipv6Addr>().is_ok());
    }
    host.bytes()
        .all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte))
}

fn credentials(who: &str) -> Option<Credentials> {
    Some(match who.split_once(':') {
        Some((user, password)) => Credentials::User {
            user: unescape(user)?,
            password: unescape(password)?,
        },
        None => Credentials::Token(unescape(who)?),
    })
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "tls" } else { "nats" };
        write!(f, "{scheme}://{}:{}", self.host, self.port)
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_say_where_and_who() {
        for (text, shown) in [
            ("nats://a", "nats://a:4222"),
            ("nats://a.b-c_d:1/", "nats://a.b-c_d:1"),
            ("tls://[::1]", "tls://[::1]:4222"),
            ("tls://u:p@[::1]:65535", "tls://[::1]:65535"),
            ("nats://127.0.0.1:4222", "nats://127.0.0.1:4222"),
        ] {
            let address: Address = text.parse().unwrap();
            assert_eq!(address.to_string(), shown, "{text}");
            assert_eq!(address.is_encrypted(), text.starts_with("tls"));
        }
        let who = |text: &str| text.parse::<Address>().unwrap().credentials().cloned();
        assert!(who("nats://a").is_none());
        let Some(Credentials::User { user, password }) = who("nats://u%3A:p%40%2F:@@a") else {
            panic!("a user");
        };
        assert_eq!((user.as_str(), password.as_str()), ("u:", "p@/:@"));
        let Some(Credentials::Token(token)) = who("nats://t%25@a:1") else {
            panic!("a token");
        };
        assert_eq!(token, "t%");
    }

    #[test]
    fn what_is_no_address_says_what_is() {
        let error = |text: &str| text.parse::<Address>().unwrap_err();
        for text in ["", "a:4222", "tcp://a:1/amps/json", "NATS://a", "nats:/a"] {
            assert_eq!(error(text), AddressError::Scheme, "{text}");
        }
        assert_eq!(error("nats://"), AddressError::NoHost);
        assert_eq!(error("nats://u:p@:1"), AddressError::NoHost);
        for port in ["0", "65536", "x", "", "+1"] {
            let text = format!("nats://a:{port}");
            assert_eq!(error(&text), AddressError::Port);
        }
        for host in ["a b", "::1", "[::1", "[x]", "a,b"] {
            let wrong = error(&format!("nats://{host}:1"));
            assert_eq!(wrong, AddressError::Host, "{host}");
        }
        for path in ["nats://a/orders", "nats://a?x=y", "nats://a:1/b@c:2/d"] {
            assert_eq!(error(path), AddressError::Path, "{path}");
        }
        let wrong = error("nats://secret%4:p@a");
        assert_eq!(wrong, AddressError::Encoding);
        assert!(!wrong.to_string().contains("secret"));
        let shown = format!("{:?}", "nats://u:secret@a".parse::<Address>().unwrap());
        assert!(!shown.contains("secret"), "{shown}");
    }
}
