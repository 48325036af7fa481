//! SQLite with a write-ahead log and without syncs.
//!
//! An append is an `INSERT`, a discard a `DELETE`, both by prepared statements, each a transaction
//! of its own. `synchronous=OFF` leaves it to the kernel when pages are written; `locking_mode=EXCLUSIVE`
//! spares the shared memory and the file locks. The log is taken over into the database every
//! 1,000 pages, as by default.

use std::path::Path;

use rusqlite::{Connection, params};

use crate::{Failure, Peer, TOPIC, number};

struct Sqlite(Connection);

pub(crate) fn open(dir: &Path) -> Result<Box<dyn Peer>, Failure> {
    let connection = Connection::open(dir.join("messages.db"))?;
    connection.execute_batch(
        "PRAGMA locking_mode=EXCLUSIVE;
         PRAGMA journal_mode=WAL;
         PRAGMA synchronous=OFF;
         CREATE TABLE IF NOT EXISTS messages (
             sequence INTEGER PRIMARY KEY, topic TEXT NOT NULL, payload BLOB NOT NULL
         );",
    )?;
    Ok(Box::new(Sqlite(connection)))
}

impl Peer for Sqlite {
    fn append(&mut self, sequence: u64, payload: &[u8]) -> Result<(), Failure> {
        let mut insert = self
            .0
            .prepare_cached("INSERT INTO messages VALUES (?1, ?2, ?3)")?;
        insert.execute(params![sequence as i64, TOPIC, payload])?;
        Ok(())
    }

    fn discard_through(&mut self, sequence: u64) -> Result<(), Failure> {
        let mut delete = self
            .0
            .prepare_cached("DELETE FROM messages WHERE sequence <= ?1")?;
        delete.execute([sequence as i64])?;
        Ok(())
    }

    fn unsettled(&mut self) -> Result<Vec<u64>, Failure> {
        let mut select = self
            .0
            .prepare("SELECT payload FROM messages ORDER BY sequence")?;
        let payloads = select.query_map([], |row| row.get::<_, Vec<u8>>(0))?;
        payloads.map(|payload| number(&payload?)).collect()
    }
}
