//! A file in memory, made record by record.

use super::*;

pub(super) const KEY: u32 = 0x5EED_0001;
pub(super) const SIZE: u64 = 8192;
pub(super) const SEGMENTS: u64 = 6;

/// A file in memory, written record by record.
pub(super) struct Image(pub(super) Vec<u8>);

impl Source for Image {
    fn fetch(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        for (i, byte) in into.iter_mut().enumerate() {
            *byte = self.0.get(offset as usize + i).copied().unwrap_or(0);
        }
        Ok(())
    }

    fn shared(&self) -> Option<&(dyn Source + Sync)> {
        Some(self)
    }
}

pub(super) fn superblock() -> Superblock {
    Superblock {
        version: VERSION,
        segments_at: SEGMENTS_AT,
        counter: 1,
        store_id: 1,
        key: KEY,
        segment_size: SIZE,
        segments: SEGMENTS,
        cap_segments: SEGMENTS,
        grant: 0,
        number_floor: 0,
        rebase_from: 0,
        rebase_delta: 0,
        generation: 1,
        closed_at: 0,
        retired: false,
        preallocated: false,
        owner_pid: 1,
        owner_host: "host".into(),
        client_name: "name".into(),
        start: 1,
        durable: 0,
        opening: Opening::default(),
        superseded: false,
        reserved: Reserved::default(),
    }
}

pub(super) fn records_at(segment: u64) -> u64 {
    SEGMENTS_AT + segment * SIZE + SEGMENT_HEADER
}

impl Image {
    /// A new store whose first segment is used from ordinal 1 on.
    pub(super) fn new() -> Self {
        let mut image = Image(vec![0; (SEGMENTS_AT + SEGMENTS * SIZE) as usize]);
        image.superblocks(&superblock(), &superblock());
        let identity = superblock().identity().map(|identity| identity.encode());
        image.put(IDENTITY_AT, &identity.unwrap_or_default());
        (0..SEGMENTS).for_each(|s| image.stamp(s, SegmentHeader::Free));
        image.used(0, 1);
        image
    }

    pub(super) fn superblocks(&mut self, first: &Superblock, second: &Superblock) {
        self.put(0, &first.encode());
        self.put(BLOCK, &second.encode());
    }

    /// Makes the log begin with this ordinal.
    pub(super) fn start(&mut self, start: u64) {
        let superblock = Superblock {
            start,
            ..superblock()
        };
        self.superblocks(&superblock, &superblock);
    }

    pub(super) fn put(&mut self, offset: u64, bytes: &[u8]) {
        self.0[offset as usize..][..bytes.len()].copy_from_slice(bytes);
    }

    pub(super) fn flip(&mut self, offset: u64) {
        self.0[offset as usize] ^= 0x40;
    }

    pub(super) fn stamp(&mut self, segment: u64, header: SegmentHeader) {
        let at = SEGMENTS_AT + segment * SIZE;
        self.put(at, &header.encode(KEY, at, 1));
    }

    pub(super) fn used(&mut self, segment: u64, first_ordinal: u64) {
        self.stamp(segment, SegmentHeader::Used { first_ordinal });
    }

    /// Writes a record and returns where the next one goes.
    pub(super) fn record(&mut self, at: u64, header: RecordHeader, body: &[u8]) -> u64 {
        let mut bytes = header.encode().to_vec();
        bytes.extend_from_slice(body);
        bytes.resize(header.stride() as usize, 0);
        let word = commit_word(record_crc(KEY, at, &bytes[4..]), header.len);
        bytes[..8].copy_from_slice(&word.to_le_bytes());
        self.put(at, &bytes);
        at + header.stride()
    }

    pub(super) fn plain(
        &mut self,
        at: u64,
        kind: Kind,
        sequence: u64,
        ordinal: u64,
        body: &[u8],
    ) -> u64 {
        let header = RecordHeader {
            len: (RECORD_HEADER + body.len()) as u32,
            kind,
            quiet: false,
            envelope_len: 0,
            sequence,
            ordinal,
            generation: 1,
        };
        self.record(at, header, body)
    }

    pub(super) fn message(
        &mut self,
        at: u64,
        kind: Kind,
        sequence: u64,
        ordinal: u64,
        origin: Origin,
    ) -> u64 {
        let mut envelope = Envelope::publish("t");
        envelope.origin = origin;
        let mut body = vec![0; 256];
        let len = envelope.encode_into(&mut body).unwrap();
        body.truncate(len);
        let envelope_len = body.len() as u32;
        body.extend_from_slice(b"payload");
        let header = RecordHeader {
            len: (RECORD_HEADER + body.len()) as u32,
            kind,
            quiet: origin != Origin::Publish,
            envelope_len,
            sequence,
            ordinal,
            generation: 1,
        };
        self.record(at, header, &body)
    }

    /// Makes the record at `at` one of another generation.
    pub(super) fn of_generation(&mut self, at: u64, generation: u64) {
        let bytes = &self.0[at as usize..];
        let mut header = RecordHeader::decode(bytes, SIZE).unwrap();
        let body = bytes[RECORD_HEADER..header.len as usize].to_vec();
        header.generation = generation;
        self.record(at, header, &body);
    }

    pub(super) fn publish(&mut self, at: u64, sequence: u64, ordinal: u64) -> u64 {
        self.message(at, Kind::Publish, sequence, ordinal, Origin::Publish)
    }

    pub(super) fn mark(&mut self, at: u64, ordinal: u64, mark: &Mark) -> u64 {
        let mut body = Vec::new();
        mark.encode(&mut body);
        self.plain(at, Kind::Mark, 0, ordinal, &body)
    }

    pub(super) fn epoch(&mut self, at: u64, ordinal: u64, follows: u64) -> u64 {
        self.epoch_before(at, ordinal, follows, 0)
    }

    pub(super) fn epoch_before(
        &mut self,
        at: u64,
        ordinal: u64,
        follows: u64,
        first_after: u64,
    ) -> u64 {
        let mut body = Vec::new();
        let epoch = Epoch {
            follows,
            first_after,
            ..Epoch::default()
        };
        epoch.encode(&mut body);
        self.plain(at, Kind::Epoch, 0, ordinal, &body)
    }

    pub(super) fn recover(&self) -> Recovered {
        let len = self.0.len() as u64;
        let header = read_header(self, len)
            .map_err(|r| format!("{r:?}"))
            .unwrap();
        recover(self, len, &header.superblock)
            .map_err(|r| format!("{r:?}"))
            .unwrap()
    }

    pub(super) fn look(&self, at: u64, end: u64) -> Verdict {
        let geometry = Image::new().recover().geometry;
        Scanner::new(self, geometry).look(at, end).unwrap()
    }

    pub(super) fn header(&self) -> Result<(Superblock, bool), Refusal> {
        read_header(self, self.0.len() as u64).map(|h| (h.superblock, h.repair))
    }
}

pub(super) fn durable(ordinal: u64) -> Mark {
    Mark {
        durable: ordinal,
        ..Mark::default()
    }
}

/// Messages 1 to `n` with ordinals 1 to `n`, the second damaged; then a mark.
pub(super) fn with_gap(n: u64, mark: Option<Mark>) -> Image {
    let mut image = Image::new();
    let mut at = records_at(0);
    for i in 1..=n {
        let next = image.publish(at, i, i);
        if i == 2 {
            image.flip(at + 50);
        }
        at = next;
    }
    if let Some(mark) = mark {
        image.mark(at, n + 1, &mark);
    }
    image
}

pub(super) fn standings<const N: usize>(recovered: &Recovered) -> [Standing; N] {
    std::array::from_fn(|i| recovered.state.standing(i as u64 + 1))
}
