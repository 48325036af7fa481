//! Connection strings: `scheme://[user[:password]@]host:port/protocol[/message_type][?options]`
//! (`docs/protocol.md` §3).

#[cfg(test)]
mod tests;

use std::fmt::{self, Write as _};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// How the byte stream is carried.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scheme {
    /// `tcp`.
    Tcp,
    /// `tcps`: TLS over TCP.
    Tcps,
    /// `unix`: a Unix domain socket.
    Unix,
}

impl Scheme {
    /// The scheme as written in a URI.
    pub fn as_str(self) -> &'static str {
        match self {
            Scheme::Tcp => "tcp",
            Scheme::Tcps => "tcps",
            Scheme::Unix => "unix",
        }
    }
}

/// Which addresses of a host are tried first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum IpPreference {
    /// IPv4, the default (`docs/protocol.md` §3).
    #[default]
    Ipv4,
    /// IPv6.
    Ipv6,
}

/// Where a server is and how to talk to it. Made by parsing:
///
/// ```
/// use amps_client::uri::{Scheme, Uri};
///
/// let uri: Uri = "tcp://me:s%40crit@localhost:9007/amps/json?tcp_nodelay=true".parse()?;
/// assert_eq!(uri.scheme(), Scheme::Tcp);
/// assert_eq!((uri.host(), uri.port()), ("localhost", 9007));
/// assert_eq!(uri.password(), Some("s@crit"));
/// assert_eq!(uri.message_type(), Some("json"));
/// assert_eq!(uri.to_string(), "tcp://me:***@localhost:9007/amps/json?tcp_nodelay=true");
/// # Ok::<(), amps_client::uri::UriError>(())
/// ```
///
/// `Display` and `Debug` never show the password.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Uri {
    scheme: Scheme,
    user: Option<String>,
    password: Option<String>,
    host: String,
    port: u16,
    protocol: String,
    message_type: Option<String>,
    options: Options,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Options {
    bind: Option<IpAddr>,
    receive_buffer: Option<u32>,
    send_buffer: Option<u32>,
    no_delay: Option<bool>,
    prefer: Option<IpPreference>,
    path: Option<PathBuf>,
}

/// Why a string is not a connection string. The texts say what to write instead.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum UriError {
    /// There is no `://`.
    #[error("no scheme; write tcp://host:port/amps/json")]
    MissingScheme,
    /// The scheme is not one this client speaks.
    #[error("unknown scheme \"{scheme}\"; tcp, tcps and unix are known")]
    UnknownScheme {
        /// What was written.
        scheme: String,
    },
    /// There is no host.
    #[error("no host; write {scheme}://host:port/amps/json")]
    MissingHost {
        /// The scheme.
        scheme: &'static str,
    },
    /// The host is in brackets but is no IPv6 address, or is an IPv6 address without brackets, or
    /// has characters that no host name has.
    #[error("\"{host}\" is not a host; IPv6 addresses go in brackets, as in [::1]:9007")]
    BadHost {
        /// What was written.
        host: String,
    },
    /// There is no port.
    #[error("no port behind \"{host}\"; write {host}:9007")]
    MissingPort {
        /// The host.
        host: String,
    },
    /// The port is not a number from 0 to 65535.
    #[error("\"{port}\" is not a port; ports go from 0 to 65535")]
    BadPort {
        /// What was written.
        port: String,
    },
    /// There is no path.
    #[error("no protocol; end the address with /amps/json, or /amps and no message type")]
    MissingProtocol,
    /// The protocol is one this client does not speak.
    #[error("protocol \"{protocol}\" is not supported; write amps")]
    UnsupportedProtocol {
        /// What was written.
        protocol: String,
    },
    /// The path has more than a protocol and a message type.
    #[error("\"/{extra}\" is too much; the path is a protocol and a message type")]
    ExtraPath {
        /// What was too much.
        extra: String,
    },
    /// A percent sign is not followed by two hexadecimal digits, or the bytes are no UTF-8.
    #[error("\"{text}\" is not percent-encoded text; write % as %25, @ as %40")]
    BadEncoding {
        /// What could not be decoded; the user part is not repeated.
        text: String,
    },
    /// An option is not known.
    #[error(
        "unknown option \"{name}\"; bind, tcp_rcvbuf, tcp_sndbuf, tcp_nodelay, \
         ip_protocol_prefer and path are known"
    )]
    UnknownOption {
        /// The option's name.
        name: String,
    },
    /// An option has no meaning for this scheme.
    #[error("option \"{name}\" means nothing for {scheme}")]
    MisplacedOption {
        /// The option's name.
        name: String,
        /// The scheme.
        scheme: &'static str,
    },
    /// An option comes twice.
    #[error("option \"{name}\" is given twice")]
    RepeatedOption {
        /// The option's name.
        name: String,
    },
    /// An option's value cannot be read.
    #[error("option {name}={value}: expected {expected}")]
    BadOption {
        /// The option's name.
        name: String,
        /// What was written.
        value: String,
        /// What can be written.
        expected: &'static str,
    },
    /// Compression was asked for.
    #[error("option compression={value} is not supported; leave it out")]
    CompressionUnsupported {
        /// What was written.
        value: String,
    },
    /// The file of a Unix socket stands in the place of the host.
    #[error(
        "unix takes the socket's file as an option; write \
         unix://localhost:0/amps/json?path={}",
        Encoded(.file)
    )]
    SocketAsAddress {
        /// The file, decoded.
        file: String,
    },
    /// A Unix socket's file is not named.
    #[error("unix needs the socket's file; write unix://localhost:0/amps/json?path=/run/amps.sock")]
    MissingPath,
}

impl Uri {
    /// The scheme.
    pub fn scheme(&self) -> Scheme {
        self.scheme
    }

    /// The user, decoded.
    pub fn user(&self) -> Option<&str> {
        self.user.as_deref()
    }

    /// The password, decoded. Never log it.
    pub fn password(&self) -> Option<&str> {
        self.password.as_deref()
    }

    /// Host name or address, an IPv6 address without its brackets. Meaningless for
    /// [`Scheme::Unix`].
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port. Meaningless for [`Scheme::Unix`].
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The protocol, `amps` or its synonym `json`.
    pub fn protocol(&self) -> &str {
        &self.protocol
    }

    /// The message type for the logon; needed when the server's transport takes several.
    pub fn message_type(&self) -> Option<&str> {
        self.message_type.as_deref()
    }

    /// `bind`: local address of the outgoing connection.
    pub fn bind(&self) -> Option<IpAddr> {
        self.options.bind
    }

    /// `tcp_rcvbuf`: SO_RCVBUF in bytes; absent leaves it to the system.
    pub fn receive_buffer(&self) -> Option<u32> {
        self.options.receive_buffer
    }

    /// `tcp_sndbuf`: SO_SNDBUF in bytes; absent leaves it to the system.
    pub fn send_buffer(&self) -> Option<u32> {
        self.options.send_buffer
    }

    /// `tcp_nodelay`: switches Nagle's algorithm off; off by default, as documented.
    pub fn no_delay(&self) -> bool {
        self.options.no_delay.unwrap_or(false)
    }

    /// `ip_protocol_prefer`: which addresses to try first. The spelling of its values is
    /// not documented; `ipv4` and `ipv6` are taken.
    pub fn ip_preference(&self) -> IpPreference {
        self.options.prefer.unwrap_or_default()
    }

    /// `path`: file of a Unix socket; always there for [`Scheme::Unix`].
    pub fn path(&self) -> Option<&Path> {
        self.options.path.as_deref()
    }

    /// The same URI with another port: what a listener on port 0 turned out to be.
    #[must_use]
    pub fn with_port(mut self, port: u16) -> Self {
        self.port = port;
        self
    }

    /// `host:port`, brackets included, as for a log line.
    pub fn authority(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }
}

impl FromStr for Uri {
    type Err = UriError;

    fn from_str(text: &str) -> Result<Self, UriError> {
        let parsed =
            Uri::parse(text).map_err(|error| misplaced_socket(text, &error).unwrap_or(error));
        parsed.map_err(|error| match hides_a_password(text) {
            true => error.without_text(),
            false => error,
        })
    }
}

/// Whether a text that was taken for a host, a path or an option may be part of a password: a `/`
/// or `?` in a password ends the authority before its `@`.
fn hides_a_password(text: &str) -> bool {
    let rest = text.split_once("://").map_or(text, |(_, rest)| rest);
    let authority = rest.find(['/', '?']).unwrap_or(rest.len());
    rest[authority..].contains('@') || text[..text.len() - rest.len()].contains('@')
}

/// What is wrong with the address of a Unix socket that is written as in other programs, with the
/// file in the place of the host: `unix:///run/a.sock`, `unix:/run/a.sock`.
fn misplaced_socket(text: &str, error: &UriError) -> Option<UriError> {
    let rest = text.strip_prefix("unix:")?;
    let (address, query) = rest.split_once('?').unwrap_or((rest, ""));
    let mut options = query.split('&');
    let named = options.find_map(|option| option.strip_prefix("path="));
    let file = match (named, error) {
        (Some(file), UriError::MissingScheme) => file.to_owned(),
        (
            Some(file),
            UriError::MissingHost { .. }
            | UriError::MissingPort { .. }
            | UriError::BadHost { .. }
            | UriError::MissingProtocol,
        ) => file.to_owned(),
        (Some(_), _) | (None, UriError::MissingPath) => return None,
        (None, _) => {
            let address = address.strip_prefix("//").unwrap_or(address);
            match address.split_once('/') {
                // With a host, what follows it is the file.
                Some((host, file))
                    if host.is_empty() || host.contains(':') || host == "localhost" =>
                {
                    format!("/{file}")
                }
                _ => format!("/{address}"),
            }
        }
    };
    let file = decode(&file).unwrap_or(file);
    (file != "/").then_some(UriError::SocketAsAddress { file })
}

/// Text as the value of an option of a URI.
struct Encoded<'a>(&'a str);

impl fmt::Display for Encoded<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        encode(f, self.0, "/:")
    }
}

impl UriError {
    /// The same without anything of what was written.
    fn without_text(self) -> Self {
        let hidden = || "***".to_owned();
        match self {
            UriError::UnknownScheme { .. } => UriError::UnknownScheme { scheme: hidden() },
            UriError::BadHost { .. } => UriError::BadHost { host: hidden() },
            UriError::MissingPort { .. } => UriError::MissingPort { host: hidden() },
            UriError::BadPort { .. } => UriError::BadPort { port: hidden() },
            UriError::UnsupportedProtocol { .. } => {
                UriError::UnsupportedProtocol { protocol: hidden() }
            }
            UriError::ExtraPath { .. } => UriError::ExtraPath { extra: hidden() },
            UriError::BadEncoding { .. } => UriError::BadEncoding { text: hidden() },
            UriError::UnknownOption { .. } => UriError::UnknownOption { name: hidden() },
            UriError::MisplacedOption { scheme, .. } => UriError::MisplacedOption {
                name: hidden(),
                scheme,
            },
            UriError::RepeatedOption { .. } => UriError::RepeatedOption { name: hidden() },
            UriError::BadOption { expected, .. } => UriError::BadOption {
                name: hidden(),
                value: hidden(),
                expected,
            },
            UriError::CompressionUnsupported { .. } => {
                UriError::CompressionUnsupported { value: hidden() }
            }
            UriError::SocketAsAddress { .. } => UriError::SocketAsAddress { file: hidden() },
            error @ (UriError::MissingScheme
            | UriError::MissingHost { .. }
            | UriError::MissingProtocol
            | UriError::MissingPath) => error,
        }
    }
}

impl Uri {
    fn parse(text: &str) -> Result<Self, UriError> {
        let (scheme, rest) = text.split_once("://").ok_or(UriError::MissingScheme)?;
        let scheme = match scheme {
            "tcp" => Scheme::Tcp,
            "tcps" => Scheme::Tcps,
            "unix" => Scheme::Unix,
            "" => return Err(UriError::MissingScheme),
            _ => {
                return Err(UriError::UnknownScheme {
                    scheme: scheme.to_owned(),
                });
            }
        };
        let (rest, query) = match rest.split_once('?') {
            Some((rest, query)) => (rest, query),
            None => (rest, ""),
        };
        let (authority, path) = match rest.split_once('/') {
            Some((authority, path)) => (authority, path),
            None => (rest, ""),
        };
        let (user_info, address) = match authority.rsplit_once('@') {
            Some((user_info, address)) => (Some(user_info), address),
            None => (None, authority),
        };
        let (user, password) = credentials(user_info)?;
        let (host, port) = host_and_port(scheme, address)?;
        let (protocol, message_type) = protocol_and_type(path)?;
        let options = Options::parse(scheme, query)?;
        if scheme == Scheme::Unix && options.path.is_none() {
            return Err(UriError::MissingPath);
        }
        Ok(Uri {
            scheme,
            user,
            password,
            host,
            port,
            protocol,
            message_type,
            options,
        })
    }
}

impl fmt::Display for Uri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://", self.scheme.as_str())?;
        if let Some(user) = &self.user {
            encode(f, user, "")?;
            f.write_str(if self.password.is_some() {
                ":***@"
            } else {
                "@"
            })?;
        }
        write!(f, "{}/{}", self.authority(), self.protocol)?;
        if let Some(message_type) = &self.message_type {
            f.write_str("/")?;
            encode(f, message_type, "")?;
        }
        self.options.fmt(f)
    }
}

impl fmt::Debug for Uri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Uri({self})")
    }
}

impl Options {
    fn parse(scheme: Scheme, query: &str) -> Result<Self, UriError> {
        let mut options = Options::default();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            options.set(scheme, name, &decode(value)?)?;
        }
        Ok(options)
    }

    fn set(&mut self, scheme: Scheme, name: &str, value: &str) -> Result<(), UriError> {
        let for_unix = match name {
            "bind" | "tcp_rcvbuf" | "tcp_sndbuf" | "tcp_nodelay" | "ip_protocol_prefer" => false,
            "path" => true,
            "compression" => {
                return Err(UriError::CompressionUnsupported {
                    value: value.to_owned(),
                });
            }
            _ => {
                return Err(UriError::UnknownOption {
                    name: name.to_owned(),
                });
            }
        };
        if for_unix != (scheme == Scheme::Unix) {
            let scheme = scheme.as_str();
            return Err(UriError::MisplacedOption {
                name: name.to_owned(),
                scheme,
            });
        }
        let bad = |expected| UriError::BadOption {
            name: name.to_owned(),
            value: value.to_owned(),
            expected,
        };
        let bytes = || match value.parse() {
            Ok(0) | Err(_) => Err(bad("a number of bytes above zero")),
            Ok(bytes) => Ok(bytes),
        };
        let repeated = match name {
            "bind" => {
                let address = value.trim_start_matches('[').trim_end_matches(']');
                self.bind
                    .replace(address.parse().map_err(|_| bad("an IP address"))?)
                    .is_some()
            }
            "tcp_rcvbuf" => self.receive_buffer.replace(bytes()?).is_some(),
            "tcp_sndbuf" => self.send_buffer.replace(bytes()?).is_some(),
            "tcp_nodelay" => {
                let on = boolean(value).ok_or_else(|| bad("true or false"))?;
                self.no_delay.replace(on).is_some()
            }
            "ip_protocol_prefer" => {
                let prefer = match value.to_ascii_lowercase().as_str() {
                    "ipv4" => IpPreference::Ipv4,
                    "ipv6" => IpPreference::Ipv6,
                    _ => return Err(bad("ipv4 or ipv6")),
                };
                self.prefer.replace(prefer).is_some()
            }
            _ if value.is_empty() => return Err(bad("a file")),
            _ => self.path.replace(PathBuf::from(value)).is_some(),
        };
        if repeated {
            return Err(UriError::RepeatedOption {
                name: name.to_owned(),
            });
        }
        Ok(())
    }

    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let prefer = self.prefer.map(|prefer| match prefer {
            IpPreference::Ipv4 => "ipv4",
            IpPreference::Ipv6 => "ipv6",
        });
        let pairs = [
            ("bind", self.bind.map(|value| value.to_string())),
            (
                "tcp_rcvbuf",
                self.receive_buffer.map(|value| value.to_string()),
            ),
            (
                "tcp_sndbuf",
                self.send_buffer.map(|value| value.to_string()),
            ),
            ("tcp_nodelay", self.no_delay.map(|value| value.to_string())),
            ("ip_protocol_prefer", prefer.map(str::to_owned)),
            (
                "path",
                self.path
                    .as_ref()
                    .map(|path| path.to_string_lossy().into_owned()),
            ),
        ];
        let given = pairs
            .iter()
            .filter_map(|(name, value)| Some((name, value.as_ref()?)));
        for (i, (name, value)) in given.enumerate() {
            write!(f, "{}{name}=", if i == 0 { '?' } else { '&' })?;
            encode(f, value, "/:")?;
        }
        Ok(())
    }
}

fn credentials(user_info: Option<&str>) -> Result<(Option<String>, Option<String>), UriError> {
    let Some(user_info) = user_info else {
        return Ok((None, None));
    };
    let (user, password) = match user_info.split_once(':') {
        Some((user, password)) => (user, Some(password)),
        None => (user_info, None),
    };
    // The text of a failure could hold a password; it is not repeated.
    let decode = |text| {
        decode(text).map_err(|_| UriError::BadEncoding {
            text: "***".to_owned(),
        })
    };
    Ok((Some(decode(user)?), password.map(decode).transpose()?))
}

fn host_and_port(scheme: Scheme, address: &str) -> Result<(String, u16), UriError> {
    let scheme = scheme.as_str();
    let bad_host = |host: &str| UriError::BadHost {
        host: host.to_owned(),
    };
    let (host, port) = if let Some(bracketed) = address.strip_prefix('[') {
        let (host, port) = bracketed.split_once(']').ok_or_else(|| bad_host(address))?;
        host.parse::<std::net::Ipv6Addr>()
            .map_err(|_| bad_host(host))?;
        match port.strip_prefix(':') {
            Some(port) => (host, Some(port)),
            None if port.is_empty() => (host, None),
            None => return Err(bad_host(address)),
        }
    } else {
        match address.split_once(':') {
            Some((host, port)) if port.contains(':') => {
                let _ = host;
                // A user and a password without their host would look like this too.
                let address_only = address
                    .bytes()
                    .all(|b| b.is_ascii_hexdigit() || b":.".contains(&b));
                return Err(bad_host(if address_only { address } else { "***" }));
            }
            Some((host, port)) => (host, Some(port)),
            None => (address, None),
        }
    };
    if host.is_empty() {
        return Err(UriError::MissingHost { scheme });
    }
    let host = decode(host)?;
    // A name with a mark of the grammar in it would be read as something else once shown.
    let is_of_a_name = |c: char| match c.is_ascii() {
        true => c.is_ascii_alphanumeric() || "-._~".contains(c),
        false => !c.is_control() && !c.is_whitespace(),
    };
    if !address.starts_with('[') && !host.chars().all(is_of_a_name) {
        return Err(bad_host(&host));
    }
    let port = port
        .filter(|port| !port.is_empty())
        .ok_or_else(|| UriError::MissingPort { host: host.clone() })?;
    let digits = port.bytes().all(|byte| byte.is_ascii_digit());
    let number = port.parse().ok().filter(|_| digits);
    Ok((
        host,
        // What is no number may be a password whose host is missing.
        number.ok_or_else(|| UriError::BadPort {
            port: if digits { port } else { "***" }.to_owned(),
        })?,
    ))
}

fn protocol_and_type(path: &str) -> Result<(String, Option<String>), UriError> {
    let mut parts = path.splitn(3, '/');
    let protocol = parts.next().unwrap_or_default();
    match protocol {
        "amps" | "json" => {}
        "" => return Err(UriError::MissingProtocol),
        _ => {
            return Err(UriError::UnsupportedProtocol {
                protocol: protocol.to_owned(),
            });
        }
    }
    let message_type = parts
        .next()
        .filter(|part| !part.is_empty())
        .map(decode)
        .transpose()?;
    if let Some(extra) = parts.next().filter(|part| !part.is_empty()) {
        return Err(UriError::ExtraPath {
            extra: extra.to_owned(),
        });
    }
    Ok((protocol.to_owned(), message_type))
}

fn boolean(value: &str) -> Option<bool> {
    match value.to_ascii_lowercase().as_str() {
        "1" | "t" | "true" | "y" | "yes" => Some(true),
        "0" | "f" | "false" | "n" | "no" => Some(false),
        _ => None,
    }
}

fn decode(text: &str) -> Result<String, UriError> {
    let bad = || UriError::BadEncoding {
        text: text.to_owned(),
    };
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let mut digit = || char::from(rest.next()?).to_digit(16);
        let (high, low) = digit().zip(digit()).ok_or_else(bad)?;
        bytes.push((high * 16 + low) as u8);
    }
    String::from_utf8(bytes).map_err(|_| bad())
}

/// Percent-encodes what the grammar may use as a mark, but for `plain`: the marks that mean
/// nothing where `text` stands.
fn encode(f: &mut fmt::Formatter<'_>, text: &str, plain: &str) -> fmt::Result {
    for byte in text.bytes() {
        let letter = char::from(byte);
        if byte.is_ascii_alphanumeric() || "-._~".contains(letter) || plain.contains(letter) {
            f.write_char(letter)?;
        } else {
            write!(f, "%{byte:02X}")?;
        }
    }
    Ok(())
}
