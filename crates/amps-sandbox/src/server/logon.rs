//! Logging on: who may, under which name, and what they are told.

use std::time::Duration;

use amps_client::protocol::{Ack, AckKind, FrameError, Header, LogonAck, Status};

use super::{Answered, Closing, Output, Server, unsupported};
use crate::fault::parse_duration;
use crate::rules::Link;
use crate::subscription::last_bookmark;
use crate::{Dialect, Told};

const VERSION: &str = "5.3.5.0.amps-sandbox";
const CHALLENGES: u32 = 3;
/// After this many wrong passwords in a row, a user's passwords are not looked at for a while.
const ATTEMPTS: u32 = 10;
const PAUSE: Duration = Duration::from_secs(10);

/// What was tried as one user, over all links.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Attempts {
    wrong: u32,
    closed_until: Duration,
}

impl Attempts {
    fn open(&self, now: Duration) -> bool {
        now >= self.closed_until
    }

    fn right(&mut self) {
        self.wrong = 0;
    }

    fn wrong(&mut self, now: Duration) {
        self.wrong += 1;
        if self.wrong >= ATTEMPTS {
            self.wrong = 0;
            self.closed_until = now + PAUSE;
        }
    }
}

impl Server {
    pub(super) fn logon(
        &mut self,
        link: Link,
        header: &Header<'_>,
        now: Duration,
        out: &mut Output,
    ) -> Answered {
        let Some(peer) = self.peers.get_mut(&link) else {
            return Ok(());
        };
        if peer.name.is_some() {
            return self.refuse(link, header, "duplicate logon", out);
        }
        let name = header.client_name.as_deref().unwrap_or_default();
        let user = header.user_id.as_deref().unwrap_or_default();
        let options = header.options.as_deref().unwrap_or_default();
        let conflation = options
            .split(',')
            .find_map(|o| o.trim().strip_prefix("ack_conflation="));
        let interval = conflation.map(parse_duration);
        let message_type = header.message_type.as_deref();
        let wanted_type = self.config.message_type.as_deref();
        let wrong_type =
            message_type.is_some() && wanted_type.is_some_and(|t| message_type != Some(t));
        let unknown = unsupported::option(options, |option| option.starts_with("ack_conflation="));
        let reason = if name.is_empty() {
            Some("no client name")
        } else if let Some(unknown) = &unknown {
            Some(unknown.as_str())
        } else if wrong_type {
            Some("invalid message type")
        } else if interval == Some(None) {
            Some("invalid options")
        } else {
            match self.authenticate(link, header, now, out)? {
                Authenticated::Yes => None,
                Authenticated::No => Some("auth failure"),
                Authenticated::Challenged => return Ok(()),
            }
        };
        let refused = match reason {
            Some(reason) => Err(reason),
            None => {
                let on = self.rules.log_on(link, name, user, interval.flatten());
                on.map_err(|_| "name in use")
            }
        };
        let logged_on = match refused {
            Ok(logged_on) => logged_on,
            Err(reason) => {
                out.told.push(Told::LogonRefused {
                    client_name: name.to_owned(),
                    reason: reason.to_owned(),
                });
                self.fail(link, header, reason, out)?;
                self.close(link, Closing::Graceful("auth"), out);
                return Ok(());
            }
        };
        if let Some(old) = logged_on.evicted {
            if self.peers.get(&old).is_some_and(|peer| peer.gone) {
                out.closes.push((old, Closing::Abrupt));
            }
            self.close(old, Closing::Graceful("name in use"), out);
        }
        if let Some(peer) = self.peers.get_mut(&link) {
            peer.name = Some(name.to_owned());
            let stated = message_type.or(self.config.message_type.as_deref());
            peer.json = stated.is_none_or(|stated| stated == "json");
        }
        out.told.push(Told::LoggedOn {
            client_name: name.to_owned(),
            settled: logged_on.settled,
        });
        if !header.acks.contains(AckKind::Processed) {
            return Ok(());
        }
        let documented = self.config.dialect == Dialect::Documented;
        let bookmark = last_bookmark(name, logged_on.settled);
        LogonAck {
            command_id: header.command_id.as_deref(),
            sequence: Some(logged_on.settled).filter(|_| documented),
            bookmark: Some(bookmark.as_str()).filter(|_| documented),
            client_name: Some(name),
            reason: self
                .config
                .users
                .is_empty()
                .then_some("authentication disabled"),
            version: Some(VERSION),
        }
        .encode(out.to(link))
    }

    fn authenticate(
        &mut self,
        link: Link,
        header: &Header<'_>,
        now: Duration,
        out: &mut Output,
    ) -> Result<Authenticated, FrameError> {
        let Some(peer) = self.peers.get_mut(&link) else {
            return Ok(Authenticated::No);
        };
        if self.config.users.is_empty() {
            return Ok(Authenticated::Yes);
        }
        let user = header.user_id.as_deref().unwrap_or_default();
        let given = header.password.as_deref().unwrap_or_default();
        let known = self.config.users.iter().position(|(name, _)| name == user);
        let challenge = |count: u32| format!("challenge-{}-{count}", link.0);
        let started = !self.config.challenge || peer.challenges > 0;
        if started && let Some(known) = known {
            let password = &self.config.users[known].1;
            let expected = match self.config.challenge {
                false => password.clone(),
                true => format!("{}:{password}", challenge(peer.challenges)),
            };
            // Passwords could be guessed as fast as links can be opened, unless that is slowed
            // down here.
            let attempts = &mut self.attempts[known];
            if !attempts.open(now) {
                tracing::info!(user, "too many wrong passwords; this one is not looked at");
                return Ok(Authenticated::No);
            }
            if expected == given {
                attempts.right();
                return Ok(Authenticated::Yes);
            }
            attempts.wrong(now);
        }
        if !self.config.challenge || peer.challenges >= CHALLENGES {
            return Ok(Authenticated::No);
        }
        peer.challenges += 1;
        Ack {
            command_id: header.command_id.as_deref(),
            user_id: Some(user),
            password: Some(&challenge(peer.challenges)),
            ..Ack::new(AckKind::Processed, Status::Retry)
        }
        .encode(out.to(link))?;
        Ok(Authenticated::Challenged)
    }
}

enum Authenticated {
    Yes,
    No,
    Challenged,
}
