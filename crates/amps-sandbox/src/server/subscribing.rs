//! Subscriptions and queries.

use amps_client::protocol::{
    Ack, AckKind, FrameError, Header, SowEntry, Status, encode_group, encode_sow,
};

use super::{Answered, IfAsked, Output, Server, unsupported};
use crate::filter::Filter;
use crate::rules::Link;
use crate::subscription::{Start, Subscription, Topics};

impl Server {
    pub(super) fn subscribe(
        &mut self,
        link: Link,
        header: &Header<'_>,
        out: &mut Output,
    ) -> Answered {
        let end = self.log_end;
        let subscription = match self.subscription(link, header) {
            Ok(subscription) => subscription,
            Err(reason) => return self.refuse(link, header, &reason, out),
        };
        Ack {
            command_id: header.command_id.as_deref(),
            sub_id: Some(&subscription.sub_id),
            ..Ack::new(AckKind::Processed, Status::Success)
        }
        .encode_if(header, out.to(link))?;
        let mut subscription = subscription;
        if header.acks.contains(AckKind::Completed) {
            let command_id = header.command_id.as_deref().map(str::to_owned);
            subscription.completed = Some((end, command_id));
        }
        if let Some(peer) = self.peers.get_mut(&link) {
            peer.subscriptions
                .retain(|other| other.sub_id != subscription.sub_id);
            peer.subscriptions.push(subscription);
        }
        Ok(())
    }

    pub(super) fn subscription(
        &self,
        link: Link,
        header: &Header<'_>,
    ) -> Result<Subscription, String> {
        if let Some(what) = unsupported::subscription(header) {
            return Err(what);
        }
        let options = header.options.as_deref().unwrap_or_default();
        let option = |name: &str| options.split(',').any(|option| option.trim() == name);
        let topic = header.topic.as_deref().filter(|topic| !topic.is_empty());
        let topics = Topics::parse(topic.ok_or("invalid topic")?, option("non_regex_topic"))
            .ok_or("bad regex topic")?;
        let filter = match header.filter.as_deref() {
            Some(filter) => Some(Filter::parse(filter).ok_or("bad filter")?),
            None => None,
        };
        let start = match header.bookmark.as_deref() {
            Some(bookmark) => Start::parse(bookmark).ok_or("invalid bookmark")?,
            None => Start::Now,
        };
        let sub_id = header.sub_id.as_deref().or(header.command_id.as_deref());
        let sub_id = sub_id.ok_or("invalid sub id")?.to_owned();
        let taken = self.peers.get(&link).is_some_and(|peer| {
            peer.subscriptions
                .iter()
                .any(|other| other.sub_id == sub_id)
        });
        if taken && !option("replace") {
            return Err("subscription already exists".to_owned());
        }
        let count = |peer: &super::Peer| peer.subscriptions.len();
        let full = self.peers.get(&link).map_or(0, count) >= self.config.max_subscriptions;
        if full && !taken {
            return Err("too many subscriptions".to_owned());
        }
        let (cursor, after) = match start {
            Start::Epoch => (0, None),
            Start::Now => (self.log_end, None),
            Start::After {
                publisher,
                sequence,
            } => (0, Some((publisher, sequence))),
        };
        Ok(Subscription {
            sub_id,
            topics,
            filter,
            cursor,
            after,
            completed: None,
        })
    }

    pub(super) fn unsubscribe(
        &mut self,
        link: Link,
        header: &Header<'_>,
        out: &mut Output,
    ) -> Answered {
        let ids = header
            .sub_id
            .as_deref()
            .or(header.query_id.as_deref())
            .unwrap_or_default();
        if let Some(peer) = self.peers.get_mut(&link) {
            let named = |id: &str| {
                ids.split(',')
                    .any(|named| named.trim() == id || named == "all")
            };
            peer.subscriptions
                .retain(|subscription| !named(&subscription.sub_id));
        }
        self.processed(link, header, out)
    }

    pub(super) fn query_and_subscribe(
        &mut self,
        link: Link,
        header: &Header<'_>,
        out: &mut Output,
    ) -> Answered {
        match self.subscription(link, header) {
            Err(reason) => self.refuse(link, header, &reason, out),
            Ok(subscription) => {
                if self.query(link, header, out)?
                    && let Some(peer) = self.peers.get_mut(&link)
                {
                    peer.subscriptions
                        .retain(|other| other.sub_id != subscription.sub_id);
                    peer.subscriptions.push(subscription);
                }
                Ok(())
            }
        }
    }

    pub(super) fn query(
        &mut self,
        link: Link,
        header: &Header<'_>,
        out: &mut Output,
    ) -> Result<bool, FrameError> {
        if let Some(what) = unsupported::query(header) {
            return self.refuse(link, header, &what, out).map(|()| false);
        }
        let literal = header
            .options
            .as_deref()
            .is_some_and(|o| o.contains("non_regex_topic"));
        let topic = header.topic.as_deref().unwrap_or_default();
        let filter = header.filter.as_deref().map(Filter::parse);
        let (topics, filter) = match (Topics::parse(topic, literal), filter) {
            (None, _) => {
                return self
                    .refuse(link, header, "bad regex topic", out)
                    .map(|()| false);
            }
            (_, Some(None)) => return self.refuse(link, header, "bad filter", out).map(|()| false),
            (Some(topics), filter) => (topics, filter.flatten()),
        };
        let query_id = header.query_id.as_deref().or(header.command_id.as_deref());
        let query_id = query_id.unwrap_or_default();
        let all = self.sow.query(|topic| topics.contain(topic));
        let total = all.len() as u64;
        let limit = header
            .top_n
            .and_then(|n| usize::try_from(n).ok())
            .unwrap_or(usize::MAX);
        let wanted: Vec<_> = all
            .into_iter()
            .filter(|(.., record)| filter.as_ref().is_none_or(|f| f.matches(&record.body)))
            .take(limit)
            .collect();
        let answer = Ack {
            command_id: header.command_id.as_deref(),
            query_id: Some(query_id),
            sub_id: header.sub_id.as_deref(),
            ..Ack::new(AckKind::Processed, Status::Success)
        };
        let to = out.to(link);
        answer.encode_if(header, to)?;
        encode_group(to, true, query_id)?;
        let batch = header
            .batch_size
            .and_then(|n| usize::try_from(n).ok())
            .unwrap_or(1)
            .max(1);
        for records in wanted.chunks(batch) {
            let entries = records.iter().map(|(topic, key, record)| SowEntry {
                topic,
                key,
                bookmark: Some(&record.bookmark),
                body: &record.body,
            });
            encode_sow(to, query_id, topic, entries)?;
        }
        encode_group(to, false, query_id)?;
        Ack {
            kind: AckKind::Completed,
            topic_matches: Some(total),
            matches: Some(wanted.len() as u64),
            records_returned: Some(wanted.len() as u64),
            ..answer
        }
        .encode_if(header, to)?;
        Ok(true)
    }
}
