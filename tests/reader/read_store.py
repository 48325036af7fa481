#!/usr/bin/env python3
"""Lists a publish store, written from store-format.md alone.

One line per record of the log in log order, tab separated:
ordinal, offset, kind, sequence, state, topic, payload in hex.
Exit code 0: whole; 3: damaged; 1: not a store."""
import struct
import sys
import zlib

BLOCK, HEADER, STAMP = 4096, 40, 64
KINDS = dict(enumerate("publish settlement rejection acceptance copy mark epoch lost original".split(), 1))
MESSAGES = ("publish", "copy", "original")


def superblock(data):
    best = None
    for at in (0, BLOCK):
        b = data[at:at + BLOCK]
        if len(b) < BLOCK or b[:8] != b"\x89AMPSTO\n":
            continue
        if zlib.crc32(b[:-4]) == struct.unpack_from("<I", b, BLOCK - 4)[0]:
            if struct.unpack_from("<II", b, 8) != (1, 0):
                sys.exit("a store of another version")
            names = ("counter", "id", "key", "pid", "size", "segments", "cap", "grant",
                     "number_floor", "rebase_from", "rebase_delta", "generation", "closed_at")
            s = dict(zip(names, struct.unpack_from("<QQIIQQQQQQqQQ", b, 16)), evacuated=b[888])
            best = s if best is None or s["counter"] > best["counter"] else best
    return best or sys.exit("not a publish store")


def seed(key, offset):
    place = offset // 8
    return (key ^ place ^ (place >> 32) * 0x9E3779B1) & 0xFFFFFFFF


class Reader:
    def __init__(self, data):
        self.data, self.sb = data, superblock(data)
        self.max = min(self.sb["size"] // 4, (1 << 25) - 8)
        self.log, self.set_aside, self.damaged, self.gaps = [], [], False, []
        self.dropped = 0
        self.there = min(self.sb["segments"], (len(data) - 2 * BLOCK) // self.sb["size"])
        self.damaged |= self.there < self.sb["segments"]
        self.recover()

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
            and seq < 1 << 63 and 0 < ordinal < 1 << 63 and 0 < generation < 1 << 63
        if not sound or not self.fits(at, at + stride):
            return None
        body = self.data[at + HEADER:at + length]
        return dict(at=at, stride=stride, kind=KINDS[kind], quiet=quiet, env=env, seq=seq,
                    ordinal=ordinal, generation=generation, body=body, state="live")

    def bounds(self, segment):
        at = 2 * BLOCK + segment * self.sb["size"]
        return at, at + STAMP, at + self.sb["size"]

    def recover(self):
        used, headers = [], False
        for segment in range(self.there):
            at, first, end = self.bounds(segment)
            if self.data[at + 4:at + 8] == b"SEG1" and self.fits(at, first):
                ordinal, used_flag = struct.unpack_from("<Q8xB", self.data, at + 8)
                used += [(ordinal, segment)] * used_flag
            elif record := self.look(first, end):
                used.append((record["ordinal"], segment))
            else:
                headers = True
        used.sort()
        self.laps = {s: o for o, s in used
                     if not (r := self.look(*self.bounds(s)[1:])) or r["ordinal"] == o}
        start = used[0][0] if used else 1
        self.last, self.generation, self.needed = start - 1, 0, 0
        walked, ends = set(), {}
        while used:
            segment = next((s for o, s in used if o == self.last + 1 and s not in walked), None)
            if segment is None:  # the newest segment whose epoch names the last record
                bridges = [s for o, s in used if s not in walked and self.bridge(s)]
                if not bridges:
                    break
                segment = bridges[-1]
            _, at, end = self.bounds(segment)
            walked.add(segment)
            while (record := self.look(at, end)) and self.follows(record):
                self.apply(record)
                at += record["stride"]
            ends[segment] = at
        self.needed = max([0] + [m["needed"] for r in self.log if (m := mark(r))])
        if start > max(self.needed, 1):  # headless
            self.log, self.last, self.generation = [], max(self.needed, 1) - 1, 0
            self.judge({})
            if not self.log:
                self.log, self.last, self.needed, self.set_aside = [], 0, 0, []
                self.judge({})
        elif not self.sb["closed_at"] or self.sb["closed_at"] != self.last:
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
            return first or struct.unpack_from("<Q", record["body"])[0] == self.last
        return record["ordinal"] == self.last + 1

    def judge(self, ends):
        """Everything intact behind the end of the walk, gap by gap."""
        hole, beyond = list(ends)[-1] if ends else None, []
        for segment in range(self.there):
            if segment in ends and segment != hole:
                continue
            _, first, end = self.bounds(segment)
            at, highest = ends.get(segment, first), self.laps.get(segment, 0)
            while at + HEADER <= end:
                record = self.look(at, end)
                if record and record["ordinal"] > self.last:
                    record["current"] = record["ordinal"] >= highest
                    highest = max(highest, record["ordinal"])
                    beyond.append(record)
                at += record["stride"] if record else 8
        marks = [m for r in self.log + beyond if (m := mark(r))]
        durable = max([self.sb["closed_at"]] + [m["durable"] for m in marks])
        dead = [(struct.unpack_from("<Q", r["body"])[0], r["ordinal"]) for r in beyond
                if r["kind"] == "epoch" and r["generation"] >= self.generation]
        beyond = [r for r in beyond if r["current"]
                  and not any(a < r["ordinal"] < b for a, b in dead)]
        beyond.sort(key=lambda r: (r["ordinal"], -r["generation"]))
        believed, all_of_them = [r for r in beyond if r["kind"] == "lost"], True
        while True:  # what is no part of the log names nothing
            named = [struct.unpack("<QQ", r["body"][:16])
                     for r in [r for r in self.log if r["kind"] == "lost"] + believed]
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
            self.damaged |= self.last < durable and not any(b >= durable for _, b in named)

    def course(self, beyond, named, durable):
        """What goes on, each with the last ordinal missing before it, and what is behind a cut."""
        last, generation, needed, accepted = self.last, self.generation, self.needed, []
        for i, record in enumerate(beyond):
            if record["ordinal"] <= last or record["generation"] < generation:
                continue
            through = record["ordinal"] - 1
            if record["kind"] == "epoch":
                through = max(last, struct.unpack_from("<Q", record["body"])[0])
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
            elif r["kind"] == "epoch":
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
        m = dict(zip(("floor", "durable", "next", "needed"),
                     struct.unpack_from("<4Q", record["body"], at)))
        follows = at and struct.unpack_from("<Q", record["body"])[0] + 1
        if max(m["durable"], m["needed"], follows) <= record["ordinal"]:
            return m


class Bytes:
    """bincode 2, standard configuration."""
    def __init__(self, data):
        self.data, self.at = data, 0

    def number(self):
        first = self.take(1)[0]
        return first if first < 251 else int.from_bytes(self.take(2 << (first - 251)), "little")

    def take(self, n):
        self.at += n
        if self.at > len(self.data):
            raise ValueError("it ends too early")
        return self.data[self.at - n:self.at]

    def text(self):
        return self.take(self.number()).decode()

    def option(self, read):
        flag = self.take(1)[0]
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


def judge_messages(log):
    """Sets what became of each message; the newest record of one carries it."""
    messages, rejections, waiting, floor = {}, {}, set(), 0

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
                    (e := envelope(record))["accepts"] is not None:
                accept(e["accepts"])
        elif kind == "settlement":
            for (settled,) in struct.iter_unpack("<Q", record["body"]):
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
    late = {seq for seq in waiting if rejections[seq][-1]["body"][8] & 2}
    return (floor, [(rejections[seq][-1]["ordinal"], seq) for seq in waiting],
            waiting - late - set(messages))


def main():
    with open(sys.argv[1], "rb") as file:
        reader = Reader(file.read())
    if reader.sb["evacuated"]:
        print("evacuated to another file", file=sys.stderr)
    log = reader.log[reader.dropped:]
    floor, refused, bereft = judge_messages(log)
    reader.damaged |= any(last > floor or any(at < first and seq <= last for at, seq in refused)
                          or any(lowest <= seq <= last for seq in bereft)
                          for first, lowest, last in reader.gaps)
    for record in reader.set_aside:
        record["state"] = "set aside"
    for r in log + reader.set_aside:
        topic, payload = "", b""
        if r["kind"] in MESSAGES and (t := envelope(r)["topic"]) is not None:
            topic, payload = t, r["body"][r["env"]:]
        print(r["ordinal"], r["at"], r["kind"], r["seq"], r["state"], topic, payload.hex(),
              sep="\t")
    return 3 if reader.damaged else 0


if __name__ == "__main__":
    sys.exit(main())
