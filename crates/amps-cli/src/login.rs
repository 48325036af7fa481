//! Where to publish, and who logs on there: from the command line, the environment and a file.

use std::io::Read as _;

use crate::args::{DEFAULT_SERVER, Login};
use crate::failure::{Exit, Failure};
use crate::lines::Source;
use crate::signals::Stop;

/// Anything longer is not a password but the wrong file.
const LONGEST: u64 = 64 << 10;

/// The servers' URIs, each with user and password: its own, or otherwise those given separately.
///
/// # Errors
/// The password file cannot be read, or a password has no user.
pub(crate) fn servers(
    given: &[String],
    login: &Login,
    stop: &Stop,
) -> Result<Vec<String>, Failure> {
    let variable = |name| std::env::var(name).ok().filter(|text| !text.is_empty());
    let servers: Vec<String> = match (given, variable("AMPS_SERVER")) {
        ([], None) => vec![DEFAULT_SERVER.to_owned()],
        ([], Some(servers)) => servers.split_whitespace().map(str::to_owned).collect(),
        (given, _) => given.to_vec(),
    };
    let user = login.user.clone().or_else(|| variable("AMPS_USER"));
    let password = match &login.password_file {
        Some(file) => Some(from_file(file, stop)?),
        None => variable("AMPS_PASSWORD"),
    };
    let named = |server: &String| user.is_some() || has_user(server);
    if login.password_file.is_some() && !servers.iter().all(named) {
        return Err(Failure::new(
            Exit::Usage,
            "--password-file needs a user; give one with --user, or in the server's URI",
        ));
    }
    let complete = |server: &String| with(server, user.as_deref(), password.as_deref());
    Ok(servers.iter().map(complete).collect())
}

fn from_file(file: &std::path::Path, stop: &Stop) -> Result<String, Failure> {
    let wrong = |why: &dyn std::fmt::Display| {
        Failure::other(format!(
            "cannot take a password from {}: {why}",
            file.display()
        ))
    };
    let mut text = Vec::new();
    let mut from = Source::open(file)?.until(stop.clone()).take(LONGEST + 1);
    from.read_to_end(&mut text).map_err(|e| wrong(&e))?;
    if text.len() as u64 > LONGEST {
        return Err(wrong(&format!("it has more than {LONGEST} bytes")));
    }
    let text = String::from_utf8(text).map_err(|_| wrong(&"it is not UTF-8"))?;
    // What follows on further lines is somebody's note.
    let line = text.split('\n').next().unwrap_or_default();
    Ok(line.strip_suffix('\r').unwrap_or(line).to_owned())
}

/// Scheme with user and password, and the rest.
fn parts(server: &str) -> Option<(&str, Option<&str>, &str)> {
    let (scheme, rest) = server.split_once("://")?;
    let end = rest.find(['/', '?']).unwrap_or(rest.len());
    Some(match rest[..end].rfind('@') {
        Some(at) => (scheme, Some(&rest[..at]), &rest[at + 1..]),
        None => (scheme, None, rest),
    })
}

fn has_user(server: &str) -> bool {
    parts(server).is_some_and(|(_, user, _)| user.is_some_and(|user| !user.is_empty()))
}

/// Adds user and password where a URI lacks them. A text that is no URI stays as it is, since
/// parsing it later says what is wrong.
fn with(server: &str, user: Option<&str>, password: Option<&str>) -> String {
    let Some((scheme, given, rest)) = parts(server) else {
        return server.to_owned();
    };
    let login = match (given, user, password) {
        (Some(given), _, Some(password)) if !given.contains(':') => {
            format!("{given}:{}", encoded(password))
        }
        (Some(_), _, _) | (None, None, _) => return server.to_owned(),
        (None, Some(user), None) => encoded(user),
        (None, Some(user), Some(password)) => format!("{}:{}", encoded(user), encoded(password)),
    };
    format!("{scheme}://{login}@{rest}")
}

fn encoded(text: &str) -> String {
    let byte = |byte: u8| match byte.is_ascii_alphanumeric() {
        true => char::from(byte).to_string(),
        false => format!("%{byte:02X}"),
    };
    text.bytes().map(byte).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use amps_client::uri::Uri;

    #[test]
    fn a_uri_says_more_than_what_is_given_apart() {
        let login = |server: &str, user, password| {
            let uri: Uri = with(server, user, password).parse().unwrap();
            (
                uri.user().map(str::to_owned),
                uri.password().map(str::to_owned),
            )
        };
        let some = |user: &str, password: &str| (Some(user.to_owned()), Some(password.to_owned()));
        let odd = "a:b/c@d?e%f g\u{e9}";
        assert_eq!(
            login("tcp://h:1/amps", Some("me"), Some(odd)),
            some("me", odd)
        );
        assert_eq!(
            login("tcp://h:1/amps", Some(odd), Some("x")),
            some(odd, "x")
        );
        assert_eq!(
            login("tcp://you@h:1/amps", Some("me"), Some(odd)),
            some("you", odd)
        );
        assert_eq!(
            login("tcp://you:own@h:1/amps", Some("me"), Some(odd)),
            some("you", "own")
        );
        assert_eq!(login("tcp://h:1/amps", None, Some("x")), (None, None));
        assert_eq!(
            login("tcp://h:1/amps", Some("me"), None),
            (Some("me".into()), None)
        );
    }
}
