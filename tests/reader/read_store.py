#!/usr/bin/env python3
"""Lists a publish store, written from store-format.md alone.

First the next sequence and the resume tag in hex; then one line per record of the log in log
order, tab separated: ordinal, offset, kind, sequence, state, topic, payload in hex.
Exit code 0: whole; 3: damaged; 1: not a store; 4: its creation was never finished.
Where both superblocks are damaged it lists by what stands in for them."""
import math
import struct
import sys
import zlib

BLOCK, HEADER, STAMP = 4096, 40, 64
KINDS = dict(enumerate("publish settlement rejection acceptance copy mark epoch lost original".split(), 1))
MESSAGES = ("publish", "copy", "original")
NOTHING = dict(floor=0, next=0, tag=b"", flags=0)


def superblock(data):
    best = None
    for at in (0, BLOCK):
        b = data[at:at + BLOCK]
        if len(b) < BLOCK or b[:8] != b"\x89AMPSTO\n":
            continue
        if zlib.crc32(b[:-4]) == struct.unpack_from("<I", b, BLOCK - 4)[0]:
            version, features = struct.unpack_from("<II", b, 8)
            if version not in (1, 2) or features:
                sys.exit("a store of another version")
            names = ("counter", "id", "key", "pid", "size", "segments", "cap", "grant",
                     "number_floor", "rebase_from", "rebase_delta", "generation", "closed_at")
            s = dict(zip(names, struct.unpack_from("<QQIIQQQQQQqQQ", b, 16)),
                     evacuated=b[888], segments_at=2 * BLOCK, start=0, durable=0, opening=NOTHING)
            if version == 2:
                s["evacuated"] |= b[890]
                s["segments_at"] = struct.unpack_from("<I", b, 892)[0] * BLOCK
                s["start"], s["durable"] = struct.unpack_from("<QQ", b, 896)
                opening = mark(dict(kind="mark", ordinal=0, body=b[912:1016]))
                s["opening"] = opening or NOTHING
            host, name = struct.unpack_from("<HH", b, 112)
            sound = host <= 255 and name <= 512 and s["size"] % 4096 == 0 \
                and 8192 <= s["size"] <= 1 << 27 and 1 <= s["segments"] <= s["cap"] \
                and 6 <= s["cap"] <= (1 << 43) // s["size"] - 1 \
                and all(s[n] < 1 << 63 for n in ("counter", "grant", "number_floor",
                                                 "rebase_from", "generation", "closed_at",
                                                 "start", "durable"))
            if version == 2:
                sound = sound and opening and s["segments_at"] in (2 * BLOCK, 3 * BLOCK)
            if sound and (best is None or s["counter"] >= best["counter"]):
                best = s
    if best is None and unfinished(data):
        print("its creation was never finished", file=sys.stderr)
        sys.exit(4)
    if best is None and (best := stand_in(data)):
        print("both superblocks are damaged", file=sys.stderr)
    return best or sys.exit("not a publish store")


def unwound(crc, data):
    """The register that leads over data to this CRC."""
    register = crc ^ 0xFFFFFFFF
    for byte in reversed(data):
        for _ in range(8):
            odd = register >> 31
            register = ((register ^ 0xEDB88320 * odd) << 1 | odd) & 0xFFFFFFFF
        register ^= byte
    return register ^ 0xFFFFFFFF


def identity(data):
    """What a store says of itself for good: key and segment size."""
    b = data[2 * BLOCK:3 * BLOCK]
    if len(b) == BLOCK and b[:8] == b"\x89AMPSID\n" \
            and zlib.crc32(b[:-4]) == struct.unpack_from("<I", b, BLOCK - 4)[0]:
        key, size, first = struct.unpack_from("<I4xQQ", b, 16)
        if first == 3 * BLOCK and is_size(size):
            return key, size
    return None


def is_size(size):
    return size % BLOCK == 0 and 2 * BLOCK <= size <= 1 << 27


def stand_in(data):
    """What stands in for a superblock, or None."""
    told = {}
    if known := identity(data):
        return standing_in(data, *known, 3 * BLOCK)
    for at in range(2 * BLOCK, len(data), BLOCK):
        if not told and at >= 2 * BLOCK + (1 << 28):
            break
        b = data[at:at + STAMP]
        if len(b) == STAMP and b[4:8] == b"SEG1" and b[24] <= 1:
            key = unwound(struct.unpack_from("<I", b)[0], b[4:]) ^ seed(0, at)
            told.setdefault(key, []).append(at)
    keys = sorted(told, key=lambda key: (-len(told[key]), told[key][0]))
    look = {key: Reader.by_key(data, key).look for key in keys}
    fitting = [k for k in keys if any(look[k](at + STAMP, len(data)) for at in told[k])]
    keys = fitting or [k for k in keys[:1] if len(told[k]) > 1]
    if not keys:
        return None
    key = keys[0]
    old = told[key][0] == 2 * BLOCK
    for first in (2, 3) if old else (3, 2):
        first *= BLOCK
        if min(told[key]) >= first and len(data) > first \
                and (size := size_told(data, look[key], told[key], first)):
            return standing_in(data, key, size, first)
    return None


def size_told(data, look, headers, first):
    """The size of a segment, if segment 0 stands at `first`."""
    room = len(data) - first

    def distance(starts):
        size = math.gcd(*(at - first for at in starts))
        return size, is_size(size)

    size, sound = distance(headers)
    if not sound or sum(at + size <= len(data) for at in headers) < room // size:
        at, end, begun = first, 0, []
        while at < len(data):
            record = look(at, len(data))
            if record and record["seq"] == 0 and at % BLOCK == STAMP and end <= at - STAMP:
                begun.append(at - STAMP)
            end = at + record["stride"] if record else end
            at = end if record else at + 8
        by_records, by_records_sound = distance(headers + begun)
        if by_records_sound:
            size, sound = by_records, True
        elif by_records == 0:
            size, sound = min(room // BLOCK * BLOCK, 1 << 27), True
    return size if sound and is_size(size) and room >= size else None


def standing_in(data, key, size, first):
    segments = (len(data) - first) // size
    sb = dict(key=key, size=size, segments=segments, grant=0, number_floor=0, generation=0,
              closed_at=0, evacuated=0, segments_at=first, durable=0, opening=NOTHING, stand_in=True)
    return dict(sb, start=told_start(data, sb))


def told_start(data, sb):
    """The highest oldest needed ordinal of a mark behind which no record is missing."""
    reader, found = Reader.by_key(data, sb["key"]), {}
    reader.max = min(sb["size"] // 4, (1 << 25) - 8)
    for segment in range(sb["segments"]):
        at = sb["segments_at"] + segment * sb["size"]
        at, end = at + STAMP, at + sb["size"]
        while at + HEADER <= end:
            record = reader.look(at, end)
            if record:
                found.setdefault(record["ordinal"], []).append(record)
            at += record["stride"] if record else 8
    epochs = [(f, r["ordinal"]) for rs in found.values() for r in rs if (f := follows(r)) is not None]
    before = {ordinal: f for f, ordinal in epochs}
    back_to = {}
    for ordinal in sorted(found):
        back_to[ordinal] = back_to.get(before.get(ordinal, ordinal - 1), ordinal)
    return max([m["needed"] for rs in found.values() for r in rs
                if (m := mark(r)) and back_to[r["ordinal"]] <= m["needed"]
                and not any(a < r["ordinal"] < b for a, b in epochs)] + [0])


def unfinished(data):
    """Whether this is what a creation leaves that did not reach its end."""
    for at in range(0, len(data), BLOCK):
        b = data[at:at + BLOCK]
        if at == 0 and len(b) == BLOCK and b[:8] == b"\x89AMPSTO\n":
            continue
        if at >= 2 * BLOCK and len(b) == BLOCK and b[4:64] == b"SEG1" + bytes(56):
            b = b[64:]
        if any(b):
            return False
    return True


def seed(key, offset):
    place = offset // 8
    return (key ^ place ^ (place >> 32) * 0x9E3779B1) & 0xFFFFFFFF


class Reader:
    def __init__(self, data):
        self.data, self.sb = data, superblock(data)
        self.max = min(self.sb["size"] // 4, (1 << 25) - 8)
        self.log, self.set_aside, self.damaged, self.gaps, self.met = [], [], False, [], []
        self.dropped = 0
        first, size = self.sb["segments_at"], self.sb["size"]
        self.damaged |= len(data) < first + self.sb["segments"] * size
        # The segment in which it ends reads as if zeros followed.
        self.there = min(self.sb["segments"], -(-max(0, len(data) - first) // size))
        self.data = data + bytes(max(0, first + self.there * size - len(data)))
        self.recover()

    @classmethod
    def by_key(cls, data, key):
        """One that looks at places, whatever the segments."""
        reader = cls.__new__(cls)
        reader.data, reader.sb, reader.max = data, {"key": key}, (1 << 25) - 8
        return reader

    def fits(self, at, end):
        return zlib.crc32(self.data[at + 4:end], seed(self.sb["key"], at)) == \
            struct.unpack_from("<I", self.data, at)[0]

    def look(self, at, end):
        """The intact record at a place, or None."""
        if at + HEADER > end:
            return None
        _, length, kind, quiet, zero, env, seq, ordinal, generation = \
            struct.unpack_from("<IIBBHIQQQ", self.data, at)
        stride = (length + 7) // 8 * 8
        message = kind in (1, 5, 9)
        sound = HEADER <= length and stride <= min(self.max, end - at) and kind in KINDS \
            and quiet <= message and zero == 0 and env <= (length - HEADER) * message \
            and seq < 1 << 63 and (seq > 0) == (kind in (1, 3, 4, 5, 9)) and 0 < ordinal < 1 << 63 and 0 < generation < 1 << 63
        if not sound or not self.fits(at, at + stride):
            return None
        body = self.data[at + HEADER:at + length]
        return dict(at=at, stride=stride, kind=KINDS[kind], quiet=quiet, env=env, seq=seq,
                    ordinal=ordinal, generation=generation, body=body, state="live")

    def bounds(self, segment):
        at = self.sb["segments_at"] + segment * self.sb["size"]
        return at, at + STAMP, at + self.sb["size"]

    def recover(self):
        used, headers = [], False
        for segment in range(self.there):
            at, first, end = self.bounds(segment)
            ordinal, used_flag = struct.unpack_from("<Q8xB", self.data, at + 8)
            sound = used_flag == 0 or used_flag == 1 and 0 < ordinal < 1 << 63
            if self.data[at + 4:at + 8] == b"SEG1" and self.fits(at, first) and sound:
                used += [(ordinal, segment)] * used_flag
            elif record := self.look(first, end):
                used.append((record["ordinal"], segment))
            else:
                headers = True
        used = sorted(u for u in used if u[0] >= self.sb["start"])  # the others are free
        self.laps = {s: o for o, s in used
                     if not (r := self.look(*self.bounds(s)[1:])) or r["ordinal"] == o}
        lowest = max(self.sb["start"], 1)
        start = used[0][0] if used else lowest
        self.last, self.generation = start - 1, 0
        ends, clean, at = {}, False, 0 if used else None
        while at is not None:
            segment = used[at][1]
            _, place, end = self.bounds(segment)
            while (record := self.look(place, end)) and self.follows(record):
                self.apply(record)
                place += record["stride"]
                m = mark(record)
                clean = bool(m and m["flags"] & 1)
            ends[segment] = place
            later = [i for i in range(at + 1, len(used))]
            follows = [i for i in later if used[i][0] == self.last + 1]
            bridges = [i for i in later if self.bridge(used[i][1])]
            at = follows[0] if follows else bridges[-1] if bridges else None
        self.met += self.log
        self.needed = max([self.sb["start"]] + [m["needed"] for r in self.log if (m := mark(r))])
        if start > max(self.needed, 1):  # headless
            self.log, self.last, self.generation = [], max(self.needed, 1) - 1, 0
            self.judge({})
            if not self.log:
                self.log, self.last, self.generation = [], lowest - 1, 0
                self.needed, self.set_aside = self.sb["start"], []
                self.judge({})
        elif not (clean and self.sb["closed_at"] and self.sb["closed_at"] == self.last):
            self.judge(ends)
        else:  # clean: the log is whole
            headers = False
        self.damaged |= headers

    def bridge(self, segment):
        _, at, end = self.bounds(segment)
        record = self.look(at, end)
        return record and record["kind"] == "epoch" and self.follows(record)

    def follows(self, record):
        if record["generation"] < self.generation:
            return False
        if record["kind"] == "epoch" and record["ordinal"] > self.last:
            first = not self.log and record["ordinal"] == self.last + 1
            return first or follows(record) == self.last
        return record["ordinal"] == self.last + 1

    def judge(self, ends):
        """Everything intact behind the end of the walk, gap by gap."""
        beyond = []
        for segment in range(self.there):
            _, first, end = self.bounds(segment)
            at = ends.get(segment, first)
            while at + HEADER <= end:
                record = self.look(at, end)
                if record and record["ordinal"] > self.last:
                    beyond.append(dict(record, segment=segment))
                at += record["stride"] if record else 8
        self.met += beyond
        marks = [m for r in self.met if (m := mark(r))]
        durable = max([self.sb["closed_at"], self.sb["durable"]] + [m["durable"] for m in marks])
        dead = [(f, r["ordinal"]) for r in beyond
                if (f := follows(r)) is not None and r["generation"] >= self.generation]
        beyond = [r for r in beyond if not any(a < r["ordinal"] < b for a, b in dead)]
        highest, left = dict(self.laps), []
        for record in beyond:  # by place, as they were gathered
            before = highest.get(record["segment"], 0)
            left += [record] * (record["ordinal"] >= before)
            highest[record["segment"]] = max(before, record["ordinal"])
        beyond = sorted(left, key=lambda r: (r["ordinal"], -r["generation"], r["at"]))
        believed, all_of_them = [r for r in beyond if r["kind"] == "lost"], True
        while True:  # what is no part of the log names nothing
            named = [n for r in self.log + believed if (n := names(r))]
            accepted, needed, cut = self.course(beyond, named, durable)
            held = {r["at"] for _, r in accepted}
            stays = [r for r in believed if r["at"] in held]
            if len(stays) == len(believed):
                break
            believed, all_of_them = stays * all_of_them, False
        generation = accepted[-1][1]["generation"] if accepted else self.generation
        self.set_aside = [r for r in cut if r["generation"] >= generation]
        if self.last < needed:  # what settled the records walked may be missing
            self.dropped = len(self.log)
        for through, record in accepted:
            if through is not None and through >= needed:
                self.gaps.append((self.last + 1, *self.missing_publishes(through, record)))
            if record["ordinal"] >= needed:
                self.apply(record)
            self.last, self.generation = record["ordinal"], record["generation"]
        if not self.set_aside:
            self.damaged |= self.last < durable

    def course(self, beyond, named, durable):
        """What goes on, each with the last ordinal missing before it, and what is behind a cut."""
        last, generation, needed, accepted = self.last, self.generation, self.needed, []
        for i, record in enumerate(beyond):
            if record["ordinal"] <= last or record["generation"] < generation:
                continue
            through = record["ordinal"] - 1
            if (f := follows(record)) is not None:
                through = max(last, f)
            known = through <= last or any(a <= last + 1 and through <= b for a, b in named)
            if not known and last + 1 > durable:
                return accepted, needed, beyond[i:]
            if m := mark(record):
                needed = max(needed, m["needed"])
            accepted.append((None if known else through, record))
            last, generation = record["ordinal"], record["generation"]
        return accepted, needed, []

    def missing_publishes(self, through, record):
        """First and last missing sequence if every missing record was a publish, else 2**64."""
        count = last = None
        for r in self.log:
            m, generation = mark(r), r["generation"]
            if r["kind"] == "publish":
                count = generation, r["seq"] + 1
            elif m and r["kind"] == "epoch":
                count = generation, struct.unpack_from("<Q", r["body"], 16)[0]
            elif m:
                count = generation, m["next"]
            elif count and (count[0] != generation or r["ordinal"] != last + 1):
                count = None
            last = r["ordinal"]
        m = mark(record)
        after = record["seq"] if record["kind"] == "publish" else m["next"] if m else 0
        if count and last == self.last and count[0] == record["generation"] \
                and after > count[1] and after - count[1] == through - last:
            return count[1], after - 1
        return 0, 1 << 64

    def apply(self, record):
        self.log.append(record)
        self.last, self.generation = record["ordinal"], record["generation"]


def mark(record):
    """What a mark says, or the one in an epoch, if it has the form of one."""
    at = {"mark": 0, "epoch": 24}.get(record["kind"])
    if at is not None and len(record["body"]) == at + 104:
        m = dict(zip(("floor", "durable", "next", "needed", "flags", "tag_length"),
                     struct.unpack_from("<4Q2I", record["body"], at)))
        epoch = struct.unpack_from(f"<{at // 8}Q", record["body"])
        numbers = [m[n] for n in ("floor", "durable", "next", "needed")] + list(epoch)
        if max(m["durable"], m["needed"], *[f + 1 for f in epoch[:1]]) <= record["ordinal"] \
                and max(numbers) < 1 << 63 and m["flags"] <= 3 and m["tag_length"] <= 64:
            m["tag"] = record["body"][at + 40:at + 40 + m["tag_length"]]
            return m


def follows(record):
    """The ordinal that an epoch follows."""
    if record["kind"] == "epoch" and mark(record):
        return struct.unpack_from("<Q", record["body"])[0]


def names(record):
    """First and last ordinal that a lost record names as a gap."""
    if record["kind"] == "lost" and len(record["body"]) == 32:
        first, last, *sequences = struct.unpack("<4Q", record["body"])
        if max(first, *sequences) < 1 << 63 and last < record["ordinal"]:
            return first, last


def rejection_is_late(record):
    b = record["body"]
    sound = 16 <= len(b) <= 144 and b[9] == 0 and b[8] <= 3 \
        and struct.unpack_from("<H", b, 10)[0] == len(b) - 16
    return sound and b[8] & 2 != 0


def next_sequence(reader):
    opening = reader.sb["opening"]
    told = [reader.sb["grant"], reader.sb["number_floor"], opening["floor"], opening["next"] - 1]
    for r in reader.met:
        told.append(r["seq"])
        if m := mark(r):
            told += [m["floor"], m["next"] - 1]
            if r["kind"] == "epoch":
                told.append(struct.unpack_from("<Q", r["body"], 16)[0] - 1)
    return max(told) + 1


def resume_tag(log, opening):
    for r in reversed(log):
        if m := mark(r):
            break
        tag = envelope(r).get("user_tag") if r["kind"] == "publish" and not r["quiet"] else None
        if tag:
            return tag
    return next((m["tag"] for r in reversed(log) if (m := mark(r)) and m["flags"] & 2),
                opening["tag"] if opening["flags"] & 2 else b"")


class Bytes:
    """bincode 2, standard configuration."""
    def __init__(self, data):
        self.data, self.at = data, 0

    def number(self):
        first = self.take(1)[0]
        if first > 253:
            raise ValueError("no integer")
        return first if first < 251 else int.from_bytes(self.take(2 << (first - 251)), "little")

    def take(self, n):
        self.at += n
        if self.at > len(self.data):
            raise ValueError("it ends too early")
        return self.data[self.at - n:self.at]

    def text(self):
        return self.take(self.number()).decode()

    def option(self, read):
        flag = self.number()
        if flag > 1:
            raise ValueError("no optional field")
        return read() if flag else None


def envelope(record):
    """The fields; those of an envelope that has not this form are not told."""
    b = Bytes(record["body"][:record["env"]])
    try:
        out = dict(operation=b.number(), topic=b.text(), correlation_id=b.option(b.text),
                   expiration=b.option(b.number), sow_key=b.option(b.text),
                   selector=b.option(b.text), options=b.option(b.text),
                   published_at=b.number(), user_tag=b.take(b.number()), origin=b.number())
        out["accepts"] = b.number() if out["origin"] == 1 else None
    except (ValueError, OverflowError):  # UnicodeDecodeError is a ValueError
        return dict(topic=None, accepts=None)
    whole = b.at == record["env"] and out["operation"] < 5 and out["origin"] < 3 \
        and (out["expiration"] or 0) < 1 << 32 and len(out["user_tag"]) <= 64
    return out if whole else dict(topic=None, accepts=None)


def judge_messages(log, floor):
    """Sets what became of each message; the newest record of one carries it."""
    messages, rejections, waiting = {}, {}, set()

    def accept(sequence):
        if sequence in waiting:
            waiting.remove(sequence)
            for refusal in rejections[sequence]:
                refusal["state"] = "settled"
        if sequence in messages:
            messages[sequence]["state"] = "settled"

    for record in log:
        seq, kind = record["seq"], record["kind"]
        if kind in MESSAGES:
            old = messages.get(seq)
            if seq in waiting:
                record["state"] = "rejected"
            elif old:
                record["state"] = old["state"]
            elif seq <= floor:
                record["state"] = "settled"
            if kind == "original" and record["state"] == "live":
                record["state"] = "settled"
            if old:
                old["state"] = "superseded"
            messages[seq] = record
            if kind == "publish" and record["quiet"] and \
                    (e := envelope(record))["accepts"] is not None and e["accepts"] < seq:
                accept(e["accepts"])
        elif kind == "settlement":
            body = record["body"]
            sound = len(body) % 8 == 0 and 8 <= len(body) <= 512
            for (settled,) in struct.iter_unpack("<Q", body if sound else b""):
                if settled in messages and messages[settled]["state"] == "live":
                    messages[settled]["state"] = "settled"
        elif kind == "rejection":
            for older in rejections.setdefault(seq, []):
                older["state"] = "superseded"
            rejections[seq].append(record)
            waiting.add(seq)
            record["state"] = "rejected"
            if seq in messages:
                messages[seq]["state"] = "rejected"
        elif kind == "acceptance":
            accept(seq)
        elif m := mark(record):
            floor = max(floor, m["floor"])
            for message in messages.values():
                if message["seq"] <= floor and message["state"] == "live":
                    message["state"] = "settled"
    late = {seq for seq in waiting if rejection_is_late(rejections[seq][-1])}
    return (floor, [(rejections[seq][-1]["ordinal"], seq) for seq in waiting],
            waiting - late - set(messages))


def main():
    with open(sys.argv[1], "rb") as file:
        reader = Reader(file.read())
    if reader.sb["evacuated"]:
        print("evacuated to another file", file=sys.stderr)
    log = reader.log[reader.dropped:]
    floor, refused, bereft = judge_messages(log, reader.sb["opening"]["floor"])
    reader.damaged |= any(last > floor or any(at < first and seq <= last for at, seq in refused)
                          or any(lowest <= seq <= last for seq in bereft)
                          for first, lowest, last in reader.gaps)
    for record in reader.set_aside:
        record["state"] = "set aside"
    print(next_sequence(reader), resume_tag(log, reader.sb["opening"]).hex(), sep="\t")
    for r in log + reader.set_aside:
        topic, payload = "", b""
        if r["kind"] in MESSAGES and (t := envelope(r)["topic"]) is not None:
            topic, payload = t, r["body"][r["env"]:]
        print(r["ordinal"], r["at"], r["kind"], r["seq"], r["state"], topic, payload.hex(),
              sep="\t")
    return 3 if reader.damaged or "stand_in" in reader.sb else 0


if __name__ == "__main__":
    sys.exit(main())
