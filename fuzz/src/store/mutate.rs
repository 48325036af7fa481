//! Stores that are wrong on purpose. Offsets are those of `store-format.md`.

use amps_store::testkit::{record_places, resign};
use arbitrary::{Result, Unstructured};

use super::bases::bases;

const SEGMENT: usize = 8 << 10;
const SEGMENTS_AT: usize = 12 << 10;
/// Offset and length of the fields of a superblock.
const SUPERBLOCK: [(usize, usize); 22] = [
    (8, 4),
    (12, 4),
    (16, 8),
    (24, 8),
    (32, 4),
    (40, 8),
    (48, 8),
    (56, 8),
    (64, 8),
    (72, 8),
    (80, 8),
    (88, 8),
    (96, 8),
    (104, 8),
    (112, 2),
    (114, 2),
    (892, 4),
    // Start, durable mark, and floor, next sequence and tag of the opening.
    (896, 8),
    (904, 8),
    (912, 8),
    (928, 8),
    (948, 4),
];
/// The same for a segment header.
const HEADER: [(usize, usize); 4] = [(4, 4), (8, 8), (16, 8), (24, 1)];
/// The same for a record header.
const RECORD: [(usize, usize); 7] = [(4, 4), (8, 1), (9, 1), (12, 4), (16, 8), (24, 8), (32, 8)];

/// The store that these bytes describe.
pub(super) fn mutate(data: &[u8]) -> Vec<u8> {
    let mut choices = Unstructured::new(data);
    let bases = bases();
    let base = choices.choose_index(bases.len()).unwrap_or(0);
    let mut bytes = bases[base].clone();
    // When the choices run out, the store is changed as far as they went.
    let _ = change(&mut choices, &mut bytes);
    bytes
}

fn change(choices: &mut Unstructured<'_>, bytes: &mut Vec<u8>) -> Result<()> {
    let signed = choices.ratio(15, 16)?;
    for _ in 0..choices.int_in_range(1..=8)? {
        step(choices, bytes)?;
    }
    if signed {
        resign(bytes);
        for _ in 0..choices.int_in_range(0..=2)? {
            damage(choices, bytes)?;
        }
    }
    Ok(())
}

fn step(choices: &mut Unstructured<'_>, bytes: &mut Vec<u8>) -> Result<()> {
    let places = record_places(bytes);
    let segments = bytes.len().saturating_sub(SEGMENTS_AT) / SEGMENT;
    let place = |choices: &mut Unstructured<'_>| -> Result<(usize, usize)> {
        let (at, stride) = *choices.choose(&places)?;
        Ok((at as usize, stride as usize))
    };
    let segment = |choices: &mut Unstructured<'_>| -> Result<usize> {
        if segments == 0 {
            return Ok(0);
        }
        Ok(SEGMENTS_AT + choices.choose_index(segments)? * SEGMENT)
    };
    match choices.int_in_range(0..=13u8)? {
        0 | 1 => {
            let (at, len) = *choices.choose(&SUPERBLOCK)?;
            let copies = choices.int_in_range(0..=3)?;
            let value = value(choices, bytes, at, len)?;
            for copy in 0..2 {
                if copies == copy || copies >= 2 {
                    put(bytes, copy * 4096 + at, &value);
                }
            }
        }
        2 | 3 => {
            let (at, len) = *choices.choose(&HEADER)?;
            let at = segment(choices)? + at;
            let value = value(choices, bytes, at, len)?;
            put(bytes, at, &value);
        }
        4..=6 => {
            let (at, len) = *choices.choose(&RECORD)?;
            let at = place(choices)?.0 + at;
            let value = value(choices, bytes, at, len)?;
            put(bytes, at, &value);
        }
        7 | 8 => {
            let (at, stride) = place(choices)?;
            let words = (stride / 8).saturating_sub(5).max(1);
            let at = at + 40 + 8 * choices.choose_index(words)?;
            let value = value(choices, bytes, at, 8)?;
            put(bytes, at, &value);
        }
        9 => {
            let (from, stride) = place(choices)?;
            let (to, _) = place(choices)?;
            let copy = bytes[from..from + stride].to_vec();
            put(bytes, to, &copy);
        }
        10 => {
            let (at, stride) = place(choices)?;
            put(bytes, at, &vec![0; stride]);
        }
        11 => {
            let (from, to) = (segment(choices)?, segment(choices)?);
            if let Some(copy) = bytes.get(from..from + SEGMENT).map(<[u8]>::to_vec) {
                if choices.arbitrary()? {
                    let other = bytes.get(to..to + SEGMENT).map(<[u8]>::to_vec);
                    put(bytes, from, &other.unwrap_or_default());
                }
                put(bytes, to, &copy);
            }
        }
        12 => {
            let len = choices.int_in_range(0..=bytes.len() + SEGMENT)?;
            bytes.resize(len, choices.arbitrary()?);
        }
        // Further changes are judged by what was intended so far.
        _ => resign(bytes),
    }
    Ok(())
}

/// What a bad disk does.
fn damage(choices: &mut Unstructured<'_>, bytes: &mut Vec<u8>) -> Result<()> {
    let at = choices.int_in_range(0..=bytes.len())?;
    match choices.int_in_range(0..=3u8)? {
        0 => {
            let bit = 1 << choices.int_in_range(0..=7u8)?;
            if let Some(byte) = bytes.get_mut(at) {
                *byte ^= bit;
            }
        }
        1 => {
            let end = (at / 512 * 512 + 512).min(bytes.len());
            bytes[at / 512 * 512..end].fill(choices.arbitrary()?);
        }
        2 => bytes.truncate(at),
        _ => {
            let value: u64 = choices.arbitrary()?;
            put(bytes, at, &value.to_le_bytes());
        }
    }
    Ok(())
}

/// A number that is near, far, at a limit, or taken from elsewhere in the file.
fn value(choices: &mut Unstructured<'_>, bytes: &[u8], at: usize, len: usize) -> Result<Vec<u8>> {
    let read = |at: usize| {
        let mut word = [0; 8];
        let there = bytes.get(at..).unwrap_or(&[]);
        let n = there.len().min(len);
        word[..n].copy_from_slice(&there[..n]);
        u64::from_le_bytes(word)
    };
    let value = match choices.int_in_range(0..=5u8)? {
        0 => read(at).wrapping_add_signed(i64::from(choices.arbitrary::<i8>()?)),
        1 => u64::from(choices.arbitrary::<u8>()?),
        2 => {
            let edges = [
                u64::MAX,
                1 << 63,
                (1 << 63) - 1,
                1 << 62,
                1 << 32,
                u64::from(u32::MAX),
                1 << 31,
                8192,
                4096,
                128 << 20,
            ];
            let edge = *choices.choose(&edges)?;
            edge.wrapping_add_signed(i64::from(choices.int_in_range(-2..=2i8)?))
        }
        3 => {
            let places = record_places(bytes);
            let (other, _) = *choices.choose(&places)?;
            let (field, _) = *choices.choose(&RECORD[4..])?;
            read(other as usize + field)
        }
        _ => choices.arbitrary()?,
    };
    Ok(value.to_le_bytes()[..len].to_vec())
}

/// As much of it as fits into the file.
fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    for (byte, new) in bytes.iter_mut().skip(at).zip(value) {
        *byte = *new;
    }
}
