#!/usr/bin/env python3
"""Cuts the power of a machine that writes a store, and looks at what is left.

A virtual machine runs `amps torture write` on a file system of its own and is killed at some
moment, with everything its kernel had not written. With --cache its disk had a volatile cache,
too: of the sectors written since the last flush any subset is left. The next machine dumps the
store and goes on writing; what it dumps is judged here, from (seed, run, sequence) alone.
"""

import argparse
import json
import os
import random
import shutil
import struct
import subprocess
import sys
import tempfile
import time

MASK = (1 << 64) - 1
SECTOR = 512
FLUSH, FUA, DISCARD = 1, 2, 4
LOG_MAGIC = 0x6A736677736872
MODULES = ["virtio_ring", "virtio", "virtio_pci_legacy_dev", "virtio_pci_modern_dev",
           "virtio_pci", "virtio_blk", "crc32c_generic", "crc16", "mbcache", "jbd2", "ext4",
           "libcrc32c", "xfs"]


def mix(z):
    z = (z + 0x9E3779B97F4A7C15) & MASK
    z = ((z ^ z >> 30) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ z >> 27) * 0x94D049BB133111EB) & MASK
    return z ^ z >> 31


def payload(seed, run, seq, low, high):
    """The rule in docs/torture.md."""
    length = low + mix(mix(seed ^ mix(seq)) ^ run) % (high - low + 1)
    base = mix(seed ^ mix(run) ^ mix(seq ^ 0xA5A5A5A5))
    words = [run, seq] + [(base + i * 0xD1342543DE82EF95) & MASK
                          for i in range(2, (length + 7) // 8)]
    return struct.pack(f"<{len(words)}Q", *words)[:length]


class Wrong(Exception):
    """The store broke a promise."""


class Oracle:
    """What the writers said, and what may therefore be found."""

    def __init__(self, options):
        self.options = options
        self.owner = {}  # sequence -> run, for what may be there
        self.durable = self.asked = self.discarded = self.attempted = self.next = 0

    def opened(self, run, last, first_of_run):
        self.owner = {s: r for s, r in self.owner.items() if s <= last}
        if first_of_run < self.next:
            raise Wrong(f"run {run} starts at {first_of_run}, {self.next} was next")
        self.next = self.attempted = first_of_run
        self.first_of_run, self.run = first_of_run, run

    def heard(self, line):
        word, _, rest = line.partition(" ")
        if word == "open":
            said = dict(pair.split("=") for pair in rest.split())
            said = {key: int(value) for key, value in said.items()}
            if (said["first"], said["last"], said["next"]) != self.look:
                raise Wrong(f"{line}, but the dump before it saw {self.look}")
            self.opened(said["run"], said["last"], said["next"])
        elif word == "begin":
            for seq in range(self.attempted, int(rest) + 1):
                self.owner[seq] = self.run
            self.attempted = max(self.attempted, int(rest) + 1)
        elif word == "durable":
            self.durable = int(rest)
            self.next = max(self.next, self.durable + 1)
        elif word == "discarding":
            self.asked = max(self.asked, int(rest))
        elif word == "discarded":
            self.discarded = int(rest)
        elif word not in ("looked", "end"):
            raise Wrong(f"the guest says: {line}")

    def judge(self, code, before, after, status, frames):
        if before != after:
            raise Wrong("dump changed the file")
        if before == "none" and code == 4 and self.durable == 0:
            self.look = (0, 0, 1)
            return
        if code != 0:
            raise Wrong(f"dump ended with {code}: {status}")
        status = json.loads(status)
        found, at, last = {}, 0, 0
        while at < len(frames):
            seq, length = struct.unpack_from("<QI", frames, at)
            body = frames[at + 12:at + 12 + length]
            at += 12 + length
            if seq <= last:
                raise Wrong(f"{seq} comes behind {last}")
            if seq not in self.owner:
                raise Wrong(f"{seq} was never appended")
            o = self.options
            if body != payload(o.seed, self.owner[seq], seq, o.min_len, o.max_len):
                raise Wrong(f"{seq} has other bytes than run {self.owner[seq]} gave it")
            found[seq], last = body, seq
        missing = [s for s in self.owner
                   if self.asked < s <= self.durable and s not in found]
        if missing:
            raise Wrong(f"{len(missing)} durable messages are gone, the first {min(missing)}")
        back = [s for s in found if s <= self.discarded]
        if back:
            raise Wrong(f"{min(back)} is back after it was discarded")
        if found:
            inside = [s for s in self.owner if min(found) <= s <= last and s not in found]
            if inside:
                raise Wrong(f"{min(inside)} is missing in the middle")
        if status["next"] < self.next:
            raise Wrong(f"next is {status['next']}, {self.next} was")
        if status["count"] != len(found):
            raise Wrong(f"{len(found)} frames, and {status}")
        self.look = (status["first"], status["last"], status["next"])


def initrd(options, work):
    """An archive with the static binary, busybox, and the modules a disk needs."""
    root = os.path.join(work, "root")
    for name in ("bin", "proc", "dev", "mnt", "modules"):
        os.makedirs(os.path.join(root, name))
    shutil.copy(options.busybox, os.path.join(root, "bin/busybox"))
    shutil.copy(options.amps, os.path.join(root, "amps"))
    subprocess.run(["strip", os.path.join(root, "amps")], check=True)
    here = os.path.dirname(os.path.abspath(__file__))
    shutil.copy(os.path.join(here, "init"), os.path.join(root, "init"))
    os.chmod(os.path.join(root, "init"), 0o755)
    there = {}
    for folder, _, files in os.walk(options.modules):
        there.update({f[:-3]: os.path.join(folder, f) for f in files if f.endswith(".ko")})
    for number, name in enumerate(m for m in MODULES if m in there):
        shutil.copy(there[name], os.path.join(root, "modules", f"{number:02}-{name}.ko"))
    archive = os.path.join(work, "initrd")
    with open(archive, "wb") as out:
        names = subprocess.run(["find", "."], cwd=root, check=True, capture_output=True).stdout
        subprocess.run(["cpio", "-o", "-H", "newc", "--quiet"], cwd=root, check=True,
                       input=names, stdout=out)
    return archive


def machine(options, work, run):
    """Starts a machine; its writer's lines come to the file `lines`."""
    disk, log = os.path.join(work, "disk"), os.path.join(work, "log")
    words = {"fs": options.fs, "seed": options.seed, "run": run, "capacity": options.capacity,
             "min": options.min_len, "max": options.max_len, "sync": options.sync_every,
             "lag": options.discard_lag}
    line = "console=ttyS0 quiet panic=-1 no_timer_check " + " ".join(f"rig.{k}={v}" for k, v in words.items())
    drive = f"driver=file,filename={disk},node-name=file"
    drives = ["-blockdev", drive]
    node = "file"
    if options.cache:
        open(log, "wb").close()
        drives += ["-blockdev", f"driver=file,filename={log},node-name=log",
                   "-blockdev", "driver=blklogwrites,node-name=logged,file=file,log=log,"
                   f"log-sector-size={SECTOR}"]
        node = "logged"
    look = os.path.join(work, "look")
    drives += ["-device", f"virtio-blk-pci,drive={node},write-cache=on",
               "-blockdev", f"driver=file,filename={look},node-name=look",
               "-device", "virtio-blk-pci,drive=look"]
    return subprocess.Popen(
        ["qemu-system-x86_64", "-accel", options.accel, "-m", "512", "-nographic", "-no-reboot",
         "-nodefaults", "-kernel", options.kernel, "-initrd", os.path.join(work, "initrd"),
         "-append", line, "-serial", "file:" + os.path.join(work, "console"),
         "-serial", "file:" + os.path.join(work, "lines")] + drives,
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def lines_of(work):
    with open(os.path.join(work, "lines"), errors="replace") as file:
        # A line that was cut off was not said.
        return [l.rstrip("\r") for l in file.read().split("\n")[:-1]]


def replay(work, rng):
    """What a disk with a volatile cache has left: flushed writes, and any part of later ones."""
    with open(os.path.join(work, "log"), "rb") as file:
        log = file.read()
    # The head of the log may not have been written yet; its entries are.
    if log[:8] not in (bytes(8), struct.pack("<Q", LOG_MAGIC), b""):
        raise Wrong("the log of the disk cannot be read")
    writes, at, flushed = [], SECTOR, 0
    while at + SECTOR <= len(log):
        sector, count, flags, _ = struct.unpack_from("<QQQQ", log, at)
        at += SECTOR
        data = b"" if flags & DISCARD else log[at:at + count * SECTOR]
        at += len(data)
        if flags & FLUSH:
            flushed = len(writes)
        if data:
            writes.append((sector * SECTOR, data, bool(flags & FUA)))
    with open(os.path.join(work, "base"), "r+b") as disk:
        for number, (offset, data, through) in enumerate(writes):
            fate = "all" if number < flushed or through else rng.choice(
                ["all", "none", "head", "some"])
            sectors = range(0, len(data), SECTOR)
            if fate == "none":
                continue
            if fate == "head":
                sectors = sectors[:rng.randrange(len(sectors) + 1)]
            elif fate == "some":
                sectors = [s for s in sectors if rng.random() < 0.5]
            for s in sectors:
                disk.seek(offset + s)
                disk.write(data[s:s + SECTOR])
    shutil.copy(os.path.join(work, "base"), os.path.join(work, "disk"))
    return len(writes), len(writes) - flushed


def life(options, work, rng, oracle, run):
    """One machine, from its start to the cut."""
    for name in ("lines", "console"):
        open(os.path.join(work, name), "wb").close()
    with open(os.path.join(work, "look"), "wb") as look:
        look.truncate(options.look_bytes)
    if options.cache:
        shutil.copy(os.path.join(work, "disk"), os.path.join(work, "base"))
    vm = machine(options, work, run)
    wanted = rng.choice([0, 1, 2, rng.randrange(60), rng.randrange(400)])
    end = time.monotonic() + options.patience
    try:
        while True:
            lines = lines_of(work)
            if sum(l.startswith("durable") for l in lines) >= wanted and "looked" in lines:
                break
            if vm.poll() is not None or time.monotonic() > end:
                raise Wrong("the machine ended by itself, or does not get on: "
                            + "; ".join(lines[-3:]))
            time.sleep(0.002)
        time.sleep(rng.choice([0, rng.random() * 0.02, rng.random() * 0.3]))
    finally:
        vm.kill()
        vm.wait()
    with open(os.path.join(work, "look"), "rb") as look:
        head = look.read(4096).split(b"\0")[0].decode().split("\n")
        if len(head) < 5:
            raise Wrong("the guest did not tell what it saw")
        frames = look.read(int(head[3]))
    code, before, after, _, status = head[:5]
    oracle.judge(int(code), before.split()[0], after.split()[0], status, frames)
    lines = lines_of(work)
    for line in lines:
        oracle.heard(line)
    written = replay(work, rng) if options.cache else None
    durable = sum(l.startswith("durable") for l in lines)
    print(f"run {run}: {oracle.look} {durable} syncs, {written or ''} {status}", flush=True)


def main():
    parse = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parse.add_argument("--amps", required=True, help="a static amps binary")
    parse.add_argument("--kernel", required=True)
    parse.add_argument("--modules", default="/nonexistent", help="its modules, if they matter")
    parse.add_argument("--busybox", default="/bin/busybox")
    parse.add_argument("--accel", default="tcg")
    parse.add_argument("--fs", choices=["ext4", "xfs"], default="ext4")
    parse.add_argument("--cache", action="store_true", help="the disk's own cache goes, too")
    parse.add_argument("--rounds", type=int, default=20)
    parse.add_argument("--seed", type=int, default=int(time.time()))
    parse.add_argument("--capacity", default="1MiB")
    parse.add_argument("--min-len", type=int, default=16)
    parse.add_argument("--max-len", type=int, default=600)
    parse.add_argument("--sync-every", type=int, default=16)
    parse.add_argument("--discard-lag", type=int, default=200)
    parse.add_argument("--patience", type=float, default=300)
    parse.add_argument("--look-bytes", type=int, default=64 << 20)
    options = parse.parse_args()
    rng = random.Random(options.seed)
    print(f"seed {options.seed}", flush=True)
    with tempfile.TemporaryDirectory() as work:
        initrd(options, work)
        with open(os.path.join(work, "disk"), "wb") as disk:
            disk.truncate(320 << 20)
        make = {"ext4": ["mkfs.ext4", "-q", "-F"], "xfs": ["mkfs.xfs", "-q", "-f"]}[options.fs]
        subprocess.run(make + [os.path.join(work, "disk")], check=True)
        oracle = Oracle(options)
        for run in range(1, options.rounds + 1):
            try:
                life(options, work, rng, oracle, run)
            except Wrong as wrong:
                kept = tempfile.mkdtemp(prefix="power-")
                for name in os.listdir(work):
                    if name not in ("root", "initrd", "look"):
                        shutil.copy(os.path.join(work, name), kept)
                sys.exit(f"seed {options.seed}, run {run}: {wrong}; the disk is kept in {kept}")
    print(f"{options.rounds} cuts, nothing lost and nothing invented")


if __name__ == "__main__":
    main()
