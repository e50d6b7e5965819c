"""Cuts the power of a recorded disk again and again, and has the mail system recover from each cut.

Reads the log of writes and flushes that qemu's blklogwrites made (the format of Linux's dm-log-writes: a super block, then
entries of sector, length, flags, each followed by its data). A cut lies before any entry. What was flushed before it is
on the disk; of what came after the last flush, by turns: everything, a random part, or nothing. The file system is mounted
(ext4 replays its own journal), the daemon started on it, and every message whose acknowledgement was noted before the cut
must be in the mailbox, whole, or in the queue. Called by `run`; see README.md.
"""

import argparse
import collections
import os
import random
import re
import shutil
import signal
import struct
import subprocess
import sys
import time

MAGIC, VERSION = 0x6A736677736872, 1
FLUSH, FUA, DISCARD = 1, 2, 4
SECTOR = 512
DEADLINE = 60.0
# What recovery may say of a cut; anything else is damage, which no power cut leaves.
EXPECTED = re.compile(r"torn|not proven|unproven|skipped ids|unfinished|written again")

Entry = collections.namedtuple("Entry", "sector count flags offset")


def entries_of(log):
    """The entries of a log, data left where it is."""
    magic, version, _, size = struct.unpack("<QQQI", log.read(28))
    if (magic, version, size) != (MAGIC, VERSION, SECTOR):
        sys.exit("not a log of blklogwrites")
    end = os.fstat(log.fileno()).st_size
    offset, found = SECTOR, []
    while offset + SECTOR <= end:
        log.seek(offset)
        sector, count, flags, _ = struct.unpack("<QQQQ", log.read(32))
        offset += SECTOR
        if (sector, count, flags) == (0, 0, 0):
            break
        found.append(Entry(sector, count, flags, offset))
        if not flags & DISCARD:
            offset += count * SECTOR
    return found


def apply(disk, log, entry):
    """Writes one entry to an image."""
    if entry.flags & DISCARD or not entry.count:
        return
    log.seek(entry.offset)
    disk.seek(entry.sector * SECTOR)
    disk.write(log.read(entry.count * SECTOR))


def marks_of(log, entries, marks_at):
    """The notes of acknowledgements: entry number, token, recipient."""
    found = []
    for number, entry in enumerate(entries):
        if entry.sector < marks_at:
            continue
        log.seek(entry.offset)
        for at in range(entry.count):
            words = log.read(SECTOR).rstrip(b"\0\n").decode("ascii", "replace").split()
            if len(words) == 3 and words[0] == "ACK":
                found.append((number, words[1], words[2]))
    return found


class Cut:
    """One recovered image."""

    def __init__(self, arguments, image):
        self.binary = arguments.binary
        self.image = image
        self.mount = os.path.join(arguments.work, "mount")
        self.sandbox = os.path.join(self.mount, "sandbox")

    def __enter__(self):
        os.makedirs(self.mount, exist_ok=True)
        subprocess.run(["mount", "-o", "loop", self.image, self.mount], check=True)
        return self

    def __exit__(self, *_):
        subprocess.run(["umount", self.mount], check=True)

    def text(self, name):
        try:
            with open(os.path.join(self.sandbox, name), encoding="utf-8", errors="replace") as file:
                return file.read()
        except FileNotFoundError:
            return ""

    def listing(self, *flags):
        done = subprocess.run(
            [self.binary, "--sandbox", self.sandbox, "-bp", *flags], capture_output=True, text=True, check=True
        )
        return done.stdout

    def recover(self, tokens):
        """Starts the daemon, lets local mail drain, stops it. Gives what is missing, repeats, and what it logged."""
        logged = len(self.text("var/log/maillog"))
        # A lock that the cut left, without the content that names its process, counts as anybody's for five minutes.
        mail = os.path.join(self.sandbox, "var/mail")
        for name in os.listdir(mail):
            if name.endswith(".lock"):
                os.utime(os.path.join(mail, name), (0, 0))
        for name in ("run/smtp", "run/sendmail.pid"):
            if os.path.exists(os.path.join(self.sandbox, name)):
                os.remove(os.path.join(self.sandbox, name))
        daemon = subprocess.Popen(
            [self.binary, "--sandbox", self.sandbox, "-bD", "-O", "DaemonPortOptions=Port=0"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            self.wait(daemon, lambda: self.text("run/smtp"))
            self.wait(daemon, lambda: "is empty" in self.listing("-Ac"))
            self.wait(daemon, lambda: not re.search(r"^\t.*<?(postmaster|root|postie)\b", self.listing(), re.M))
            queue = self.listing()
        finally:
            daemon.send_signal(signal.SIGTERM)
            error = daemon.communicate()[1]
        if daemon.returncode != 0:
            raise RuntimeError(f"the daemon ended with {daemon.returncode}: {error}")
        mailbox = collections.Counter()
        for name in os.listdir(mail):
            mailbox.update(re.findall(r"^token (\S+)$", self.text(f"var/mail/{name}"), re.M))
        missing = [
            token
            for token, to in tokens
            if (f"<{token}@" not in queue if to != "postmaster" else token not in mailbox)
        ]
        repeats = sum(count - 1 for count in mailbox.values())
        remarks = re.findall(r"var/spool/\S+: (.*)$", self.text("var/log/maillog")[logged:], re.M)
        return missing, repeats, remarks

    @staticmethod
    def wait(daemon, condition):
        end = time.monotonic() + DEADLINE
        while not condition():
            if daemon.poll() is not None:
                raise RuntimeError("the daemon ended")
            if time.monotonic() > end:
                raise RuntimeError("waited in vain for an end of local deliveries")
            time.sleep(0.01)


def main():
    parser = argparse.ArgumentParser()
    for name in ("binary", "work"):
        parser.add_argument(f"--{name}", required=True)
    for name in ("cuts", "marks-at", "seed"):
        parser.add_argument(f"--{name}", type=int, required=True)
    arguments = parser.parse_args()
    path = lambda name: os.path.join(arguments.work, name)
    chance = random.Random(arguments.seed)
    log = open(path("log.img"), "rb")
    entries = entries_of(log)
    marks = marks_of(log, entries, arguments.marks_at)
    if not marks:
        sys.exit("nothing was acknowledged in the guest")
    flushes = [number for number, entry in enumerate(entries) if entry.flags & FLUSH]
    fua = sum(1 for entry in entries if entry.flags & FUA)
    print(
        f"log: {len(entries)} entries, {len(flushes)} flushes, {fua} FUA, {len(marks)} acknowledgements; "
        f"seed {arguments.seed}",
        flush=True,
    )
    # A third of the cuts right before a flush, a third right after one, the rest anywhere.
    first = marks[0][0]
    late = [number for number in flushes if number > first]
    third = arguments.cuts // 3
    chosen = set(chance.sample(late, min(third, len(late))))
    after = [number + 1 for number in late if number + 1 not in chosen]
    chosen |= set(chance.sample(after, min(third, len(after))))
    rest = [number for number in range(first + 1, len(entries) + 1) if number not in chosen]
    chosen |= set(chance.sample(rest, min(arguments.cuts - len(chosen), len(rest))))
    chosen = sorted(chosen)

    shutil.copyfile(path("before.img"), path("durable.img"))
    durable = open(path("durable.img"), "r+b")
    is_durable = 0
    lost, repeated, said, kinds = 0, 0, collections.Counter(), collections.Counter()
    began = time.monotonic()
    for number, cut in enumerate(chosen):
        flushed = max((flush for flush in flushes if flush < cut), default=-1) + 1
        for entry in entries[is_durable:flushed]:
            apply(durable, log, entry)
        is_durable = max(is_durable, flushed)
        durable.flush()
        # A name of its own: the system may still have something to write into the image of the cut before.
        image_path = path(f"cut-{cut}.img")
        subprocess.run(["cp", "--sparse=always", path("durable.img"), image_path], check=True)
        pending = entries[flushed:cut]
        kind = ("everything", "a part", "nothing")[number % 3]
        with open(image_path, "r+b") as disk:
            for entry in pending:
                is_kept = {"everything": True, "nothing": False}.get(kind)
                if is_kept is None:
                    is_kept = chance.random() < 0.5
                if is_kept or entry.flags & FUA:
                    apply(disk, log, entry)
        kinds[kind] += 1
        tokens = [(token, to) for at, token, to in marks if at < cut]
        try:
            with Cut(arguments, image_path) as image:
                missing, repeats, remarks = image.recover(tokens)
        except (RuntimeError, subprocess.CalledProcessError) as error:
            missing, repeats, remarks = [str(error)], 0, []
        said.update(re.sub(r"[0-9a-f]{16}|\d+", "N", remark) for remark in remarks)
        damage = [remark for remark in remarks if not EXPECTED.search(remark)]
        repeated = max(repeated, repeats)
        if missing or damage:
            lost += 1
            keep = path(f"failed-{cut}.img")
            os.replace(image_path, keep)
            print(f"cut {cut} ({kind} after the last flush): missing {missing}, damage {damage}; kept as {keep}", flush=True)
        else:
            os.remove(image_path)
        if (number + 1) % 50 == 0:
            print(f"{number + 1} cuts, {lost} failed, {time.monotonic() - began:.0f} s", flush=True)
    for text, count in said.most_common():
        print(f"logged {count} times: {text}")
    print(
        f"{len(chosen)} cuts ({', '.join(f'{count} with {kind} after the last flush' for kind, count in kinds.items())}), "
        f"{lost} failed; at most {repeated} copies repeated at a cut; {time.monotonic() - began:.0f} s"
    )
    sys.exit(1 if lost else 0)


main()
