//! The cases of the suite. Each begins with a server that knows nobody, and an empty store.

use super::rig::{ACK, GATHERED, Rig, SECOND, lock};
use super::{Case, NoWord, Peer, REASON, Say};
use crate::delivery::Acks;
use crate::event::LinkEnd;

/// A number that no message of the suite gets.
const FAR: u64 = 1 << 40;

pub(super) fn all<P: Peer>() -> Vec<(&'static str, Case<P>)> {
    vec![
        ("nothing goes out before the link is up", before_up),
        (
            "messages come in order, each once, with their bytes",
            carried,
        ),
        ("a link gathers no more than the network takes", room),
        ("it is read while nothing can be written", blocked),
        ("much that comes at once is told in pieces", burst),
        ("no byte goes out after a link was left", left),
        ("an attempt that is dropped leaves nothing behind", dropped),
        ("a server that does not greet is left in time", not_greeted),
        (
            "a server that says nothing of messages is left in time",
            silence,
        ),
        ("a slow network is no overdue ack", slow),
        ("an ack settles its message", acked),
        ("an ack that comes late counts", late),
        ("an ack that comes twice counts once", doubled),
        ("acks may come in any order", out_of_order),
        ("an ack that is lost is asked for on the next link", lost),
        ("a message is refused in the middle", refused),
        (
            "a success past a refusal does not undo it",
            refused_and_passed,
        ),
        (
            "what is turned away goes out again, before anything new",
            try_again,
        ),
        ("what no server can take is refused here", unsendable),
        ("what a new leader does not hold goes out again", hole),
        ("a mark at the beginning settles what it covers", mark),
        (
            "a mark in the middle settles what it covers",
            mark_in_the_middle,
        ),
        ("a mark above what was sent settles nothing", foreign_mark),
        (
            "an ack for a number never sent settles nothing",
            foreign_ack,
        ),
        (
            "a duplicate for a number never sent settles nothing",
            foreign_duplicate,
        ),
        ("what is not of the protocol ends the link", nonsense),
        ("a connection that ends is followed by another", closed),
    ]
}

fn before_up<P: Peer>(rig: &mut Rig<P>) -> Result<(), NoWord> {
    rig.publish(3);
    rig.connect();
    rig.later(SECOND);
    assert_eq!(rig.messages(), [0; 0]);
    rig.says(Say::Welcome { mark: None })?;
    assert_eq!(rig.messages(), [1, 2, 3]);
    Ok(())
}

fn carried<P: Peer>(rig: &mut Rig<P>) -> Result<(), NoWord> {
    rig.up(0, None)?;
    let sizes = [0, 1, 100, 1000, 70_000, 3, 200_000];
    for size in sizes {
        rig.publish_sized(size);
    }
    rig.publish(50);
    let count = rig.messages().len() as u64;
    assert_eq!(count, 57);
    assert_eq!(rig.messages(), (1..=count).collect::<Vec<u64>>());
    for (body, wire) in rig.bodies() {
        let number = body.split(|byte| *byte == b':').next().unwrap();
        assert_eq!(number, wire.to_string().as_bytes());
        let filled = body[number.len() + 1..].iter().all(|byte| *byte == b'x');
        let size = sizes.get(wire as usize - 1).copied().unwrap_or(20);
        assert!(filled && body.len() == size.max(number.len() + 1));
    }
    Ok(())
}

fn room<P: Peer>(rig: &mut Rig<P>) -> Result<(), NoWord> {
    rig.up(0, None)?;
    rig.takes(0);
    for _ in 0..4000 {
        rig.publish_sized(1000);
    }
    rig.run();
    let gathered = |rig: &Rig<P>| -> usize {
        let watch = lock(&rig.watch);
        watch.taken.iter().map(|(_, bytes)| bytes).sum()
    };
    let first = gathered(rig);
    assert!(
        first > 0,
        "it takes nothing while the network takes nothing"
    );
    assert!(first <= GATHERED, "it gathers {first} bytes");
    // A few bytes do not change that.
    for _ in 0..10 {
        rig.takes(500);
    }
    let more = gathered(rig);
    assert!(more <= GATHERED + 5000, "it gathers {more} bytes");
    rig.takes(usize::MAX);
    assert_eq!(rig.messages(), (1..=4000).collect::<Vec<u64>>());
    Ok(())
}

fn blocked<P: Peer>(rig: &mut Rig<P>) -> Result<(), NoWord> {
    rig.up(2, None)?;
    rig.takes(0);
    for _ in 0..2000 {
        rig.publish_sized(1000);
    }
    rig.run();
    rig.says(Say::Stored(1))?;
    rig.says(Say::Stored(2))?;
    assert_eq!(rig.successes(), 2);
    Ok(())
}

fn burst<P: Peer>(rig: &mut Rig<P>) -> Result<(), NoWord> {
    rig.up(4000, None)?;
    for wire in 1..=4000 {
        if !rig.peer.says(&Say::Stored(wire)) {
            return Err(NoWord);
        }
    }
    rig.run();
    assert_eq!((rig.unsettled().len(), rig.successes()), (0, 4000));
    Ok(())
}

fn left<P: Peer>(rig: &mut Rig<P>) -> Result<(), NoWord> {
    rig.up(2, None)?;
    rig.takes(0);
    rig.publish(100);
    let before = rig.peer.taken();
    rig.leave();
    assert_eq!(rig.peer.open(), 0, "the connection is still open");
    rig.peer.takes(usize::MAX);
    assert_eq!(
        rig.peer.taken(),
        before,
        "bytes go out on a link that was left"
    );
    // What it had taken goes out on the next one.
    rig.up(0, None)?;
    rig.answers(&[])?;
    assert_eq!(rig.messages().len(), 102);
    Ok(())
}

fn dropped<P: Peer>(rig: &mut Rig<P>) -> Result<(), NoWord> {
    rig.peer.accepts(false);
    assert!(rig.begins_and_drops(), "a connection is there at once");
    assert_eq!(rig.peer.open(), 0, "the attempt is still there");
    rig.publish(1);
    rig.later(SECOND);
    rig.peer.accepts(true);
    rig.up(0, None)?;
    assert_eq!(rig.messages(), [1]);
    assert_eq!(rig.peer.open(), 1, "an earlier attempt is there, too");
    Ok(())
}

fn not_greeted<P: Peer>(rig: &mut Rig<P>) -> Result<(), NoWord> {
    rig.publish(1);
    rig.connect();
    rig.until_it_ends(60 * SECOND);
    assert_eq!(rig.messages(), [0; 0]);
    Ok(())
}

fn silence<P: Peer>(rig: &mut Rig<P>) -> Result<(), NoWord> {
    rig.up(2, None)?;
    let end = rig.until_it_ends(60 * SECOND);
    if rig.peer.acks() == Acks::Single {
        let overdue = matches!(end, LinkEnd::AckOverdue { sequence: 1 });
        assert!(overdue || end == LinkEnd::HeartbeatLost, "{end:?}");
    }
    assert_eq!(rig.unsettled(), [1, 2], "silence says nothing");
    assert_eq!(rig.refused(), []);
    rig.up(0, None)?;
    rig.answers(&[])?;
    assert_eq!(rig.messages(), [1, 2]);
    Ok(())
}

fn slow<P: Peer>(rig: &mut Rig<P>) -> Result<(), NoWord> {
    if rig.peer.acks() == Acks::Figures {
        // Their silence is the link's to judge.
        return Err(NoWord);
    }
    rig.up(0, None)?;
    rig.takes(0);
    rig.publish(1);
    for _ in 0..20 {
        rig.later(ACK / 2);
        rig.takes(1);
    }
    let ends = rig.take_ends();
    let overdue = |end: &LinkEnd| matches!(end, LinkEnd::AckOverdue { .. });
    assert!(!ends.iter().any(overdue), "it is not written: {ends:?}");
    if !ends.is_empty() {
        // It has deadlines of its own.
        return Ok(());
    }
    assert_eq!(rig.messages(), [0; 0]);
    rig.takes(usize::MAX);
    assert_eq!(rig.messages(), [1]);
    let written = rig.now.at;
    let end = rig.until_it_ends(2 * ACK);
    assert!(overdue(&end) && rig.now.at >= written + ACK, "{end:?}");
    Ok(())
}

fn acked<P: Peer>(rig: &mut Rig<P>) -> Result<(), NoWord> {
    rig.up(2, None)?;
    assert_eq!(rig.unsettled(), [1, 2], "that it is written proves nothing");
    rig.says(Say::Stored(1))?;
    assert_eq!(rig.unsettled(), [2]);
    rig.publish(1);
    rig.says(Say::Stored(2))?;
    rig.says(Say::Stored(3))?;
    assert_eq!((rig.unsettled().len(), rig.successes()), (0, 3));
    assert_eq!(rig.messages(), [1, 2, 3]);
    Ok(())
}

fn late<P: Peer>(rig: &mut Rig<P>) -> Result<(), NoWord> {
    rig.up(1, None)?;
    rig.later(ACK - SECOND);
    rig.says(Say::Stored(1))?;
    assert_eq!(rig.successes(), 1);
    assert_eq!(rig.take_ends(), []);
    Ok(())
}

fn doubled<P: Peer>(rig: &mut Rig<P>) -> Result<(), NoWord> {
    rig.up(3, None)?;
    for _ in 0..3 {
        rig.says(Say::Stored(1))?;
    }
    assert_eq!((rig.unsettled(), rig.successes()), (vec![2, 3], 1));
    assert_eq!(rig.engine.in_flight(), 2);
    rig.says(Say::Stored(3))?;
    rig.says(Say::Stored(1))?;
    let single = rig.peer.acks() == Acks::Single;
    assert_eq!(rig.successes(), if single { 2 } else { 3 });
    assert_eq!(rig.take_ends(), []);
    Ok(())
}

fn out_of_order<P: Peer>(rig: &mut Rig<P>) -> Result<(), NoWord> {
    if rig.peer.acks() == Acks::Figures {
        return Err(NoWord);
    }
    rig.up(4, None)?;
    rig.says(Say::Stored(4))?;
    rig.says(Say::Stored(2))?;
    assert_eq!(rig.unsettled(), [1, 3], "each settles itself");
    rig.says(Say::Stored(1))?;
    rig.says(Say::Stored(3))?;
    assert_eq!(rig.successes(), 4);
    Ok(())
}

/// Acks of 1 and 3 come; that of 2 does not, and the server holds it.
fn lost<P: Peer>(rig: &mut Rig<P>) -> Result<(), NoWord> {
    rig.up(3, None)?;
    rig.says(Say::Stored(1))?;
    if rig.peer.acks() == Acks::Single {
        rig.says(Say::Stored(3))?;
        let end = rig.until_it_ends(60 * SECOND);
        assert!(!matches!(end, LinkEnd::Unsendable { .. }), "{end:?}");
    } else {
        rig.says(Say::Close)?;
    }
    assert!(rig.unsettled().contains(&2));
    rig.up(0, None)?;
    rig.answers(&[2, 3])?;
    for wire in rig.messages() {
        rig.says(Say::Stored(wire))?;
    }
    assert_eq!((rig.unsettled().len(), rig.successes()), (0, 3));
    Ok(())
}

fn refused<P: Peer>(rig: &mut Rig<P>) -> Result<(), NoWord> {
    rig.up(3, None)?;
    rig.says(Say::Stored(1))?;
    rig.says(Say::Refused(2))?;
    assert_eq!(rig.unsettled(), [3], "a refusal is of one message");
    rig.says(Say::Stored(3))?;
    assert_eq!(rig.refused(), [(2, REASON.to_owned())]);
    assert_eq!((rig.unsettled().len(), rig.successes()), (0, 2));
    assert_eq!(rig.messages(), [1, 2, 3], "it does not go out again");
    Ok(())
}

fn refused_and_passed<P: Peer>(rig: &mut Rig<P>) -> Result<(), NoWord> {
    rig.up(3, None)?;
    rig.says(Say::Refused(2))?;
    assert_eq!(rig.unsettled(), [1, 3]);
    rig.says(Say::Stored(3))?;
    rig.says(Say::Stored(1))?;
    assert_eq!(rig.refused(), [(2, REASON.to_owned())]);
    assert_eq!((rig.unsettled().len(), rig.successes()), (0, 2));
    Ok(())
}

fn try_again<P: Peer>(rig: &mut Rig<P>) -> Result<(), NoWord> {
    rig.up(2, None)?;
    rig.says(Say::TryAgain(1))?;
    rig.publish(2);
    assert_eq!(rig.messages(), [1, 2], "nothing new goes out before it");
    // 2 has its verdict, or has to be turned away as well.
    if !rig.peer.says(&Say::TryAgain(2)) {
        return Err(NoWord);
    }
    rig.run();
    rig.later(2 * SECOND);
    assert_eq!(rig.messages(), [1, 2, 1, 2, 3, 4]);
    assert_eq!(rig.refused(), []);
    for wire in 1..=4 {
        rig.says(Say::Stored(wire))?;
    }
    assert_eq!((rig.unsettled().len(), rig.successes()), (0, 4));
    Ok(())
}

fn unsendable<P: Peer>(rig: &mut Rig<P>) -> Result<(), NoWord> {
    let Some(bytes) = rig.peer.too_large() else {
        return Err(NoWord);
    };
    rig.up(1, None)?;
    rig.publish_sized(bytes);
    rig.publish(1);
    rig.says(Say::Stored(1))?;
    rig.later(SECOND);
    assert_eq!(rig.messages(), [1, 3], "what is behind it goes on");
    let refused = rig.refused();
    assert!(
        matches!(&refused[..], [(2, why)] if why.starts_with("not sent: ")),
        "{refused:?}"
    );
    rig.says(Say::Stored(3))?;
    assert_eq!((rig.unsettled().len(), rig.successes()), (0, 2));
    Ok(())
}

/// A server acked 1 and 3. The one that follows it has 3, and never got 2.
fn hole<P: Peer>(rig: &mut Rig<P>) -> Result<(), NoWord> {
    if rig.peer.acks() == Acks::Figures {
        return Err(NoWord);
    }
    rig.up(3, None)?;
    rig.says(Say::Stored(1))?;
    rig.says(Say::Stored(3))?;
    rig.says(Say::Close)?;
    rig.up(0, None)?;
    rig.answers(&[1, 3])?;
    assert_eq!(rig.messages(), [2]);
    assert_eq!(rig.unsettled(), [2]);
    rig.says(Say::Stored(2))?;
    assert_eq!((rig.unsettled().len(), rig.successes()), (0, 3));
    Ok(())
}

fn mark<P: Peer>(rig: &mut Rig<P>) -> Result<(), NoWord> {
    rig.up(4, Some(0))?;
    rig.says(Say::Stored(1))?;
    rig.says(Say::Close)?;
    rig.up(0, Some(3))?;
    assert_eq!(rig.unsettled(), [4]);
    assert_eq!(rig.messages(), [4]);
    let at_logon = rig.engine.totals().persisted_at_logon;
    assert_eq!((at_logon, rig.engine.totals().persisted), (2, 1));
    Ok(())
}

fn mark_in_the_middle<P: Peer>(rig: &mut Rig<P>) -> Result<(), NoWord> {
    rig.up(4, None)?;
    rig.says(Say::Mark(3))?;
    assert_eq!((rig.unsettled(), rig.successes()), (vec![4], 3));
    Ok(())
}

fn foreign_mark<P: Peer>(rig: &mut Rig<P>) -> Result<(), NoWord> {
    rig.up(2, Some(FAR))?;
    rig.later(SECOND);
    assert_eq!(rig.successes(), 0);
    assert_eq!(rig.unsettled(), [1, 2]);
    assert!(rig.foreign_told(), "and that is told");
    let wires = rig.messages();
    assert!(wires.iter().all(|wire| *wire > FAR), "{wires:?}");
    Ok(())
}

fn foreign<P: Peer>(rig: &mut Rig<P>, say: Say) -> Result<(), NoWord> {
    rig.up(2, None)?;
    rig.says(say)?;
    assert_eq!((rig.unsettled(), rig.successes()), (vec![1, 2], 0));
    assert!(rig.foreign_told(), "and that is told");
    assert_eq!(rig.take_ends(), [LinkEnd::ForeignFigure]);
    Ok(())
}

fn foreign_ack<P: Peer>(rig: &mut Rig<P>) -> Result<(), NoWord> {
    foreign(rig, Say::Stored(FAR))
}

fn foreign_duplicate<P: Peer>(rig: &mut Rig<P>) -> Result<(), NoWord> {
    foreign(rig, Say::Duplicate(FAR))
}

fn nonsense<P: Peer>(rig: &mut Rig<P>) -> Result<(), NoWord> {
    rig.up(2, None)?;
    rig.says(Say::Stored(1))?;
    rig.says(Say::Nonsense)?;
    let ends = rig.take_ends();
    assert!(matches!(ends[..], [LinkEnd::Protocol(_)]), "{ends:?}");
    assert_eq!(rig.unsettled(), [2], "what came before it counts");
    rig.up(0, None)?;
    rig.answers(&[])?;
    assert_eq!(rig.messages(), [2]);
    Ok(())
}

fn closed<P: Peer>(rig: &mut Rig<P>) -> Result<(), NoWord> {
    rig.up(2, None)?;
    rig.says(Say::Close)?;
    let ends = rig.take_ends();
    assert!(
        matches!(ends[..], [LinkEnd::Closed | LinkEnd::Truncated]),
        "{ends:?}"
    );
    rig.up(1, None)?;
    rig.answers(&[])?;
    assert_eq!(rig.messages(), [1, 2, 3]);
    Ok(())
}
