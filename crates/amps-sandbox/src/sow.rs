//! The state of the world: the last message per key of the topics that keep one.
//!
//! A record's key is the SOW key sent with it, or otherwise the field `/id` of its JSON. AMPS
//! makes keys of its own, but only `sow_delete` by keys can tell the difference.

use std::collections::{BTreeMap, HashMap, HashSet};

use serde_json::Value;

use crate::filter::Filter;
use crate::journal::{Entry, Operation};

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) body: Vec<u8>,
    pub(crate) bookmark: String,
}

#[derive(Debug, Default)]
pub(crate) struct Sow {
    topics: HashSet<String>,
    records: HashMap<String, BTreeMap<String, Record>>,
}

impl Sow {
    pub(crate) fn new(topics: impl IntoIterator<Item = String>) -> Self {
        Sow {
            topics: topics.into_iter().collect(),
            records: HashMap::new(),
        }
    }

    /// Applies a message; returns how many records it deleted.
    pub(crate) fn apply(&mut self, entry: &Entry<'_>, position: u64) -> u64 {
        if !self.topics.contains(entry.topic) {
            return 0;
        }
        let records = self.records.entry(entry.topic.to_owned()).or_default();
        let before = records.len();
        match entry.operation {
            Operation::Publish | Operation::DeltaPublish => {
                let Some(key) = key(entry.sow_key, entry.body) else {
                    return 0;
                };
                let old = records
                    .get(&key)
                    .filter(|_| entry.operation == Operation::DeltaPublish);
                let merged = old.and_then(|old| merge(&old.body, entry.body));
                let body = merged.unwrap_or_else(|| entry.body.to_vec());
                records.insert(
                    key,
                    Record {
                        body,
                        bookmark: entry.bookmark(position),
                    },
                );
                return 0;
            }
            Operation::SowDeleteByFilter => {
                if let Some(filter) = entry.selector.and_then(Filter::parse) {
                    records.retain(|_, record| !filter.matches(&record.body));
                }
            }
            Operation::SowDeleteByKeys => {
                for key in entry.selector.unwrap_or_default().split(',') {
                    records.remove(key.trim());
                }
            }
            Operation::SowDeleteByData => {
                if let Some(key) = key(entry.sow_key, entry.body) {
                    records.remove(&key);
                }
            }
            Operation::Refused | Operation::Forgotten => {}
        }
        (before - records.len()) as u64
    }

    /// The records of the topics that `wanted` accepts, in order of topic and key.
    pub(crate) fn query(&self, mut wanted: impl FnMut(&str) -> bool) -> Vec<(&str, &str, &Record)> {
        let mut topics: Vec<_> = self
            .records
            .iter()
            .filter(|(topic, _)| wanted(topic))
            .collect();
        topics.sort_by_key(|(topic, _)| *topic);
        let rows = topics.into_iter().flat_map(|(topic, records)| {
            records
                .iter()
                .map(move |(key, record)| (topic.as_str(), key.as_str(), record))
        });
        rows.collect()
    }
}

fn key(given: Option<&str>, body: &[u8]) -> Option<String> {
    if let Some(key) = given {
        return Some(key.to_owned());
    }
    match serde_json::from_slice::<Value>(body).ok()?.get("id")? {
        Value::String(text) => Some(text.clone()),
        Value::Null => None,
        other => Some(other.to_string()),
    }
}

fn merge(old: &[u8], delta: &[u8]) -> Option<Vec<u8>> {
    let mut document: Value = serde_json::from_slice(old).ok()?;
    merge_into(&mut document, serde_json::from_slice(delta).ok()?);
    serde_json::to_vec(&document).ok()
}

fn merge_into(document: &mut Value, delta: Value) {
    match (document, delta) {
        (Value::Object(fields), Value::Object(delta)) => {
            for (name, value) in delta {
                merge_into(fields.entry(name).or_insert(Value::Null), value);
            }
        }
        (document, delta) => *document = delta,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry<'a>(operation: Operation, body: &'a [u8], selector: Option<&'a str>) -> Entry<'a> {
        Entry {
            operation,
            client_name: "p",
            sequence: Some(1),
            topic: "orders",
            sow_key: None,
            correlation_id: None,
            selector,
            body,
        }
    }

    fn bodies(sow: &Sow) -> Vec<String> {
        let rows = sow.query(|_| true);
        rows.iter()
            .map(|(.., r)| String::from_utf8(r.body.clone()).unwrap())
            .collect()
    }

    fn filled() -> Sow {
        let mut sow = Sow::new(["orders".to_owned()]);
        for body in [
            &b"{\"id\":1,\"p\":1}"[..],
            b"{\"id\":2}",
            b"{\"id\":\"x\"}",
            b"{}",
        ] {
            assert_eq!(sow.apply(&entry(Operation::Publish, body, None), 1), 0);
        }
        sow
    }

    #[test]
    fn the_last_message_per_key_is_kept_and_deltas_merge() {
        let mut sow = filled();
        sow.apply(
            &entry(Operation::DeltaPublish, b"{\"id\":1,\"q\":2}", None),
            1,
        );
        sow.apply(
            &entry(Operation::Publish, b"{\"id\":2,\"new\":true}", None),
            1,
        );
        assert_eq!(
            bodies(&sow),
            [
                "{\"id\":1,\"p\":1,\"q\":2}",
                "{\"id\":2,\"new\":true}",
                "{\"id\":\"x\"}"
            ]
        );
    }

    #[test]
    fn deletes_count_what_they_deleted() {
        let mut sow = filled();
        assert_eq!(
            sow.apply(&entry(Operation::SowDeleteByFilter, b"", Some("/p = 1")), 1),
            1
        );
        assert_eq!(
            sow.apply(&entry(Operation::SowDeleteByKeys, b"", Some("2, 9")), 1),
            1
        );
        assert_eq!(
            sow.apply(
                &entry(Operation::SowDeleteByData, b"{\"id\":\"x\"}", None),
                1
            ),
            1
        );
        assert!(bodies(&sow).is_empty());
    }

    #[test]
    fn other_topics_keep_nothing() {
        let mut sow = filled();
        let other = Entry {
            topic: "plain",
            ..entry(Operation::Publish, b"{\"id\":1}", None)
        };
        sow.apply(&other, 1);
        assert!(sow.query(|topic| topic == "plain").is_empty());
    }
}
