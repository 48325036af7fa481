//! Where each frame belongs (`docs/protocol.md` §7).

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use amps_delivery::planted;
use bytes::Bytes;

use super::{
    Credentials, MAX_CHALLENGES, Named, Phase, Placed, Received, ServerInfo, Session, What, own_sub,
};
use crate::delivery::{PublishAck, Verdict};
use crate::error::CommandError;
use crate::protocol::{
    AckKind, AckKinds, Header, HeaderError, Reason, ReasonKind, SowRecord, SowRecords, Status, cut,
};
use crate::requests::{Answer, Delivered, DeliveredKind};

impl Session {
    pub(super) fn ack(
        &mut self,
        now: Duration,
        header: &Header<'_>,
        out: &mut Vec<u8>,
        sink: &mut dyn FnMut(Received<'_>),
    ) {
        let named = Named::by(header.command_id.as_deref(), &self.config);
        if let Phase::LoggingOn { id, challenges, .. } = self.phase {
            let processed = header.ack_kind() == Some(AckKind::Processed);
            let mine = named == Named::Own(id) || planted!(AnyAckLogsOn) && processed;
            if mine && (processed || header.status != Some(Status::Success)) {
                return self.logon_ack(now, header, challenges, out, sink);
            }
            // Nothing was sent on this link that the ack could be about.
            return self.of_nothing_known(named, header, sink);
        }
        let mut by_command = None;
        if let Named::Own(id) = named {
            if self.waiting.contains_key(&id) {
                return self.command_ack(id, header, out, sink);
            }
            by_command = self.placed_by(id);
        }
        let by_name = header.sub_id.as_deref().or(header.query_id.as_deref());
        let of_subscription = by_name.is_some() && !planted!(SubscriptionAckSettles);
        if of_subscription || by_command.is_some() {
            let subscription = by_name.and_then(own_sub).or(by_command);
            // Progress of a bookmark subscription, never of the publish store
            // (`docs/protocol.md` §7).
            return match subscription.filter(|id| self.gave_out(*id)) {
                Some(subscription) => self.subscription_ack(subscription, header, out, sink),
                None => self.of_nothing_known(named, header, sink),
            };
        }
        match self.publish_ack(named, header) {
            Some(ack) => sink(Received::Ack(ack)),
            None => sink(Received::Unhandled(header)),
        }
    }

    /// Passes on what names a command or a subscription that is none of this client's, or comes
    /// when nothing was sent. A failure among it may be one of a publish all the same: it must
    /// not pass for nothing.
    fn of_nothing_known(
        &self,
        named: Named,
        header: &Header<'_>,
        sink: &mut dyn FnMut(Received<'_>),
    ) {
        let answered = matches!(named, Named::Own(id) if self.gave_out(id));
        match self.stray_failure(named, header).filter(|_| !answered) {
            Some(ack) => sink(Received::Ack(ack)),
            None => sink(Received::Unhandled(header)),
        }
    }

    /// A failure, or a status that is no success, with a number or the id of a publish beside
    /// what it names first: it settles nothing, and is told as one that names no message.
    fn stray_failure<'h>(&self, named: Named, header: &'h Header<'_>) -> Option<PublishAck<'h>> {
        let figure = header.sequence.filter(|sequence| *sequence > 0);
        let numbered = figure.is_some() || matches!(named, Named::Publish(_));
        let reason = header.reason_text.as_deref().unwrap_or_default();
        let reason = match header.status? {
            Status::Success => return None,
            Status::Retry | Status::Unknown if reason.is_empty() => NO_STATUS,
            Status::Failure | Status::Retry | Status::Unknown => reason,
        };
        // Without a store a figure counts nothing of ours.
        let may_be_ours = self.config.stored && numbered && is_of_a_publish(header.ack_kind());
        may_be_ours.then_some(PublishAck {
            figure,
            sequence: None,
            verdict: Verdict::Stray(reason),
        })
    }

    /// What an ack says about publishes, if it is about any.
    fn publish_ack<'h>(&self, named: Named, header: &'h Header<'_>) -> Option<PublishAck<'h>> {
        let figure = header.sequence.filter(|sequence| *sequence > 0);
        let kind = match planted!(KindIgnored) {
            true => Some(AckKind::Persisted),
            false => header.ack_kind(),
        };
        let status = match header.status {
            Some(Status::Failure) => Status::Failure,
            _ if planted!(StatusIgnored) => Status::Success,
            status => status?,
        };
        let reason = header.reason_text.as_deref().unwrap_or_default();
        let (sequence, verdict) = match (named, status) {
            // It is about a command that nobody waits for any more. If it has a number, that is
            // another publisher's (`docs/protocol.md` §13).
            (Named::Own(id), _) if self.gave_out(id) => return None,
            (Named::Own(_), _) => return self.stray_failure(named, header),
            (Named::Stranger, Status::Failure) if is_of_a_publish(kind) => {
                (None, Verdict::Stray(reason))
            }
            (Named::Stranger, _) => return None,
            (Named::Nobody, Status::Failure) => (None, Verdict::Refused(reason)),
            (Named::Publish(id), Status::Failure) => (Some(id), Verdict::Refused(reason)),
            // The status is no word that is known for success or failure.
            (_, Status::Retry | Status::Unknown) => return self.stray_failure(named, header),
            (_, Status::Success) if kind != Some(AckKind::Persisted) => return None,
            (Named::Publish(id), Status::Success) => (Some(id), Verdict::Persisted),
            // Without a store a figure counts nothing of ours.
            (Named::Nobody, Status::Success) if !self.config.stored => return None,
            (Named::Nobody, Status::Success) => (None, Verdict::Persisted),
        };
        let names_nothing = figure.is_none() && sequence.is_none();
        if verdict == Verdict::Persisted && names_nothing {
            return None;
        }
        Some(PublishAck {
            figure,
            sequence,
            verdict,
        })
    }

    fn logon_ack(
        &mut self,
        now: Duration,
        header: &Header<'_>,
        challenges: u32,
        out: &mut Vec<u8>,
        sink: &mut dyn FnMut(Received<'_>),
    ) {
        let status = match header.status {
            Some(Status::Failure) if planted!(RefusedLogonBelieved) => Some(Status::Success),
            status => status,
        };
        match status {
            Some(Status::Success) => {
                // The figure counts what somebody else has sent, and this link's messages would
                // be counted as theirs.
                let name = header.client_name.as_deref().unwrap_or_default();
                if !name.is_empty() && name != self.config.client_name {
                    self.phase = Phase::Offline;
                    return sink(Received::LoggedOnAs(cut(name)));
                }
                self.phase = Phase::LoggedOn;
                let hash = header
                    .bookmark
                    .as_deref()
                    .and_then(|bm| bm.split('|').next());
                self.server = ServerInfo {
                    version: header.version.as_deref().map(|text| cut(text).to_owned()),
                    name_hash: hash.and_then(|hash| hash.parse().ok()),
                };
                sink(Received::LoggedOn {
                    figure: header.sequence,
                });
                self.start_heartbeat(now, out);
                self.resubscribe(now, out);
            }
            Some(Status::Retry) if challenges < MAX_CHALLENGES => {
                if let Phase::LoggingOn { challenges, .. } = &mut self.phase {
                    *challenges += 1;
                }
                // A challenge is documented to be in user_id and pw; one server was seen to put
                // it into the reason (`docs/protocol.md` §5.3).
                let owned = |text: &Option<Cow<'_, str>>| text.as_deref().map(str::to_owned);
                sink(Received::Challenge(Credentials {
                    user: owned(&header.user_id),
                    password: owned(&header.password).or_else(|| owned(&header.reason_text)),
                }));
            }
            _ => {
                self.phase = Phase::Offline;
                sink(Received::LogonRefused(header.reason()));
            }
        }
    }

    fn command_ack(
        &mut self,
        id: u64,
        header: &Header<'_>,
        out: &mut Vec<u8>,
        sink: &mut dyn FnMut(Received<'_>),
    ) {
        if header.status != Some(Status::Success) {
            // Neither no answer nor one without a status that is known is a refusal: such a
            // server has not said that it does without heartbeats.
            let asked = self.waiting.get(&id).map(|waiting| waiting.what);
            if matches!(asked, Some(What::Heartbeat)) && header.status == Some(Status::Failure) {
                self.silence.refused();
            }
            let error = CommandError::Refused(no_success(header));
            return self.finish(id, Err(error), out, sink);
        }
        let Some(waiting) = self.waiting.get_mut(&id) else {
            return;
        };
        let answer = &mut waiting.answer;
        answer.records_deleted = header.records_deleted.or(answer.records_deleted);
        answer.records_returned = header.records_returned.or(answer.records_returned);
        answer.matches = header.matches.or(answer.matches);
        if let Some(bookmark) = header.bookmark.as_deref() {
            answer.bookmark = Some(bookmark.to_owned());
        }
        if let Some(kind) = header.ack_kind() {
            waiting.left = waiting
                .left
                .iter()
                .filter(|left| *left != kind)
                .fold(AckKinds::NONE, AckKinds::with);
        }
        let completed = header.ack_kind() == Some(AckKind::Completed);
        if let (What::Subscribe { subscription, .. }, true) = (waiting.what, completed) {
            self.query_completed(subscription, sink);
        }
        if self
            .waiting
            .get(&id)
            .is_some_and(|waiting| waiting.left.is_empty())
        {
            let answer = self
                .waiting
                .get(&id)
                .map(|w| w.answer.clone())
                .unwrap_or_default();
            self.finish(id, Ok(answer), out, sink);
        }
    }

    pub(super) fn finish(
        &mut self,
        id: u64,
        result: Result<Answer, CommandError>,
        out: &mut Vec<u8>,
        sink: &mut dyn FnMut(Received<'_>),
    ) {
        let Some(waiting) = self.waiting.remove(&id) else {
            return;
        };
        match waiting.what {
            What::Command => sink(Received::Done { id, result }),
            What::Heartbeat => match result {
                Ok(_) => {
                    if let Some(interval) = self.config.heartbeat {
                        self.silence.confirmed(interval);
                    }
                    sink(Received::HeartbeatInitiated);
                }
                Err(_) => self.beat_at = None,
            },
            What::Subscribe {
                subscription,
                again,
            } => {
                let failed = result.as_ref().err().cloned();
                if failed.is_some() {
                    // The server may have placed it all the same.
                    self.unsubscribe(subscription, out);
                }
                sink(Received::Done {
                    id: subscription,
                    result,
                });
                if let Some(error) = failed {
                    let error = Some(error);
                    sink(Received::SubscriptionEnded {
                        subscription,
                        error,
                    });
                }
                if again {
                    self.resubscribing = self.resubscribing.saturating_sub(1);
                    if self.resubscribing == 0 {
                        sink(Received::Resubscribed);
                    }
                }
            }
        }
    }

    fn placed_by(&self, command: u64) -> Option<u64> {
        let mut all = self.subscriptions.iter();
        all.find(|(_, placed)| placed.command == command)
            .map(|(id, _)| *id)
    }

    fn subscription_ack(
        &mut self,
        subscription: u64,
        header: &Header<'_>,
        out: &mut Vec<u8>,
        sink: &mut dyn FnMut(Received<'_>),
    ) {
        let failed = header.status == Some(Status::Failure);
        let completed = header.ack_kind() == Some(AckKind::Completed);
        let vague = completed && header.status != Some(Status::Success);
        if (failed || vague) && self.is_subscribed(subscription) {
            self.unsubscribe(subscription, out);
            let error = Some(CommandError::Refused(no_success(header)));
            sink(Received::SubscriptionEnded {
                subscription,
                error,
            });
        } else if completed {
            self.query_completed(subscription, sink);
        }
    }

    fn query_completed(&mut self, subscription: u64, sink: &mut dyn FnMut(Received<'_>)) {
        let is_query = self
            .subscriptions
            .get(&subscription)
            .is_some_and(|placed| placed.spec.is_query());
        if is_query {
            self.subscriptions.remove(&subscription);
            sink(Received::SubscriptionEnded {
                subscription,
                error: None,
            });
        }
    }

    /// Delivers a message to every subscription that it names, once to each: naming one twice
    /// costs nothing. What no subscription takes is passed up as unhandled.
    pub(super) fn deliver(
        &mut self,
        kind: DeliveredKind,
        header: &Header<'_>,
        body: &[u8],
        sink: &mut dyn FnMut(Received<'_>),
    ) {
        let ids = header
            .sub_ids
            .as_deref()
            .or(header.sub_id.as_deref())
            .or(header.query_id.as_deref())
            .unwrap_or_default();
        self.frames += 1;
        let mut message: Option<Delivered> = None;
        for subscription in ids.split(',').filter_map(own_sub) {
            let Some(placed) = self.subscriptions.get_mut(&subscription) else {
                continue;
            };
            if std::mem::replace(&mut placed.last_frame, self.frames) == self.frames {
                continue;
            }
            let message = message.get_or_insert_with(|| {
                let topic = header.topic.as_deref().unwrap_or_default();
                delivered(kind, header, topic.into(), body)
            });
            placed.passed(message);
            sink(Received::Delivered {
                subscription,
                message: message.clone(),
            });
        }
        if message.is_none() {
            sink(Received::Unhandled(header));
        }
    }

    /// Delivers the records of a `sow` frame. If no subscription takes some of them, the frame is
    /// passed up as unhandled, once: it has room for more records than there is memory for
    /// reports about them.
    ///
    /// # Errors
    /// A record cannot be read; what came before it was delivered.
    pub(super) fn deliver_records(
        &mut self,
        group: &Header<'_>,
        body: &[u8],
        sink: &mut dyn FnMut(Received<'_>),
    ) -> Result<(), HeaderError> {
        let mut group_topic: Option<Arc<str>> = None;
        let mut told = false;
        for record in SowRecords::new(body) {
            let SowRecord { header, body } = record?;
            let id = group.query_id.as_deref().or(header.query_id.as_deref());
            let subscription = id.and_then(own_sub);
            let placed = subscription.and_then(|id| Some((id, self.subscriptions.get_mut(&id)?)));
            let Some((subscription, placed)) = placed else {
                if !std::mem::replace(&mut told, true) {
                    sink(Received::Unhandled(group));
                }
                continue;
            };
            let topic = match header.topic.as_deref() {
                Some(topic) => topic.into(),
                // They share one topic: a frame has room for more records than there is memory
                // for copies of it.
                None => group_topic
                    .get_or_insert_with(|| group.topic.as_deref().unwrap_or_default().into())
                    .clone(),
            };
            let message = delivered(DeliveredKind::Sow, &header, topic, body);
            placed.passed(&message);
            sink(Received::Delivered {
                subscription,
                message,
            });
        }
        Ok(())
    }
}

impl Placed {
    /// Remembers a message that is on its way to the reader.
    fn passed(&mut self, message: &Delivered) {
        if self.spec.bookmark.is_some()
            && let Some(bookmark) = &message.bookmark
        {
            self.bookmark = Some(bookmark.clone());
        }
    }
}

/// Whether a refusal of this kind can be one of a publish.
fn is_of_a_publish(kind: Option<AckKind>) -> bool {
    !matches!(kind, Some(AckKind::Completed | AckKind::Stats))
}

/// The reason of an ack that has neither a known status nor a reason.
const NO_STATUS: &str = "the ack's status is neither success nor failure";

/// Why an ack is no success: the server's reason, or otherwise its status, which may be missing
/// or an unknown word.
fn no_success(header: &Header<'_>) -> Reason {
    match (header.reason(), header.status) {
        (reason, _) if reason.kind() != ReasonKind::None => reason,
        (_, Some(Status::Failure)) => Reason::none(),
        (_, Some(status)) => Reason::new(format!("an ack with status \"{}\"", status.as_str())),
        (_, None) => Reason::new("an ack without a status"),
    }
}

fn delivered(kind: DeliveredKind, header: &Header<'_>, topic: Arc<str>, body: &[u8]) -> Delivered {
    let owned = |text: &Option<Cow<'_, str>>| text.as_deref().map(str::to_owned);
    Delivered {
        kind,
        topic,
        bookmark: owned(&header.bookmark),
        sow_key: owned(&header.sow_key),
        correlation_id: owned(&header.correlation_id),
        timestamp: owned(&header.timestamp),
        user_id: owned(&header.user_id),
        reason: header.reason_text.as_deref().map(Reason::new),
        // Copied, because a slice would keep the whole read buffer alive for a slow reader.
        data: Bytes::copy_from_slice(body),
    }
}
