//! What real servers can do and this one cannot. It is refused by name: a client that asked for
//! an order and got none would be tested against a server that does not exist.

use amps_client::protocol::{Header, Verb};

fn not_here(what: &str) -> String {
    format!("not supported by the sandbox: {what}")
}

/// The first option of a list that is not `known`.
pub(super) fn option(options: &str, known: impl Fn(&str) -> bool) -> Option<String> {
    let mut all = options.split(',').map(str::trim);
    all.find(|option| !option.is_empty() && !known(option))
        .map(not_here)
}

/// What a subscription asks for that this server cannot do.
pub(super) fn subscription(header: &Header<'_>) -> Option<String> {
    // For these the query before the subscription is asked for, and checked.
    let queries = header.verb == Some(Verb::SowAndSubscribe);
    match &header.verb {
        Some(Verb::DeltaSubscribe | Verb::SowAndDeltaSubscribe) => {
            return Some(not_here("delta subscriptions"));
        }
        _ if queries => return query(header),
        _ => {}
    }
    if header.order_by.is_some() {
        return Some(not_here("orderby"));
    }
    if header.top_n.is_some() {
        return Some(not_here("top_n of a replay"));
    }
    option(header.options.as_deref().unwrap_or_default(), |option| {
        matches!(option, "replace" | "non_regex_topic")
    })
}

/// What a query asks for that this server cannot do.
pub(super) fn query(header: &Header<'_>) -> Option<String> {
    if header.order_by.is_some() {
        return Some(not_here("orderby"));
    }
    if header.bookmark.is_some() {
        return Some(not_here("a query of the past"));
    }
    let subscribes = header.verb == Some(Verb::SowAndSubscribe);
    option(header.options.as_deref().unwrap_or_default(), |option| {
        option == "non_regex_topic" || subscribes && option == "replace"
    })
}

/// What a message asks for that this server cannot do.
pub(super) fn message(header: &Header<'_>) -> Option<String> {
    if header.expiration.is_some_and(|seconds| seconds > 0) {
        return Some(not_here("expiration"));
    }
    if header.verb == Some(Verb::SowDelete) && header.bookmark.is_some() {
        return Some(not_here("acknowledgement of queue messages"));
    }
    option(header.options.as_deref().unwrap_or_default(), |_| false)
}
