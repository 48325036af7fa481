//! Which slip is made in this process: `AMPS_SLIP=n`, or none. Copied into the scratch workspace.
//!
//! With `AMPS_SLIP=record` none is made; instead the file `AMPS_SLIP_MAP` marks which of them
//! were reached, with one byte for each number.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

const RECORD: u32 = u32::MAX - 1;
const NOT_READ: u32 = u32::MAX;

static CHOSEN: AtomicU32 = AtomicU32::new(NOT_READ);
static MAP: OnceLock<memmap2::MmapRaw> = OnceLock::new();

/// Whether slip `n` is made.
#[inline(always)]
pub fn on(n: u32) -> bool {
    let chosen = CHOSEN.load(Relaxed);
    chosen == n || (chosen >= RECORD && seldom(n))
}

#[cold]
fn seldom(n: u32) -> bool {
    if CHOSEN.load(Relaxed) == NOT_READ {
        let chosen = match std::env::var("AMPS_SLIP").as_deref() {
            Err(_) => 0,
            Ok("record") => RECORD,
            Ok(n) => n.parse().expect("AMPS_SLIP is a number, or `record`"),
        };
        CHOSEN.store(chosen, Relaxed);
        return on(n);
    }
    let map = MAP.get_or_init(|| {
        let path = std::env::var("AMPS_SLIP_MAP").expect("AMPS_SLIP_MAP names a file");
        let file = std::fs::File::options().read(true).write(true).open(path).expect("the map");
        memmap2::MmapRaw::map_raw(&file).expect("the map in memory")
    });
    assert!((n as usize) < map.len());
    // SAFETY: within the map; every process and thread writes the same byte.
    unsafe { map.as_mut_ptr().add(n as usize).write_volatile(1) };
    false
}

/// One more, if slip `n` is made.
#[inline(always)]
pub fn bump<T: Number>(n: u32, value: T) -> T {
    if on(n) { value.next() } else { value }
}

pub trait Number {
    fn next(self) -> Self;
}

macro_rules! numbers {
    ($($t:ty)*) => { $(impl Number for $t {
        fn next(self) -> Self { self.wrapping_add(1) }
    })* };
}

numbers!(u8 u16 u32 u64 u128 usize i8 i16 i32 i64 i128 isize);
