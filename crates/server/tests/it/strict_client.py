"""A client and a relaying server as the Go implementation 0.3 has them, to try a running server with.

It is strict: its code is generated from the Go implementation's contract and nothing else, it takes messages of at most
4 MiB as every gRPC library does by itself, and it compares every byte. One line per check; the last line has their
number.

The secret of the hook and the token are in GITSTAFETTE_WEBHOOK_HMAC and OAUTH_TOKEN, as for the server.
"""

import argparse
import hashlib
import hmac
import http.client
import json
import os
import sys
import tempfile
import time
import traceback
import urllib.parse
from dataclasses import dataclass
from importlib import import_module

import grpc
from grpc_tools import protoc

SECRET = os.environ["GITSTAFETTE_WEBHOOK_HMAC"].encode()
TOKEN = os.environ["OAUTH_TOKEN"]

# The server's watchlist is the numbers of both, as users of the Go implementation have it.
LIGHTHOUSE = ("537845873", "octo-harbor/lighthouse")
ANCHOR = ("478599060", "octo-harbor/anchor")
# It is not.
ELSEWHERE = ("111222333", "elsewhere/thing")

MIB = 1 << 20
# No call takes so long; one that does has hung.
PATIENCE = 60


class Checks:
    def __init__(self):
        self.passed = 0
        self.failed = 0

    def that(self, name, holds, detail=""):
        if holds:
            self.passed += 1
        else:
            self.failed += 1
        suffix = f" ({detail})" if detail else ""
        print(f"{'ok    ' if holds else 'FAILED'} {name}{suffix}", flush=True)

    def same(self, name, got, wanted):
        self.that(name, got == wanted, "" if got == wanted else f"got {got!r}, not {wanted!r}")


@dataclass
class Webhook:
    """One webhook as GitHub sends it."""

    delivery_id: str
    repository: tuple
    body: bytes
    headers: list

    @classmethod
    def of(cls, delivery_id, repository=LIGHTHOUSE, size=0):
        # The spaces, the escapes and the line's end are what a relay would change that writes JSON anew.
        number, name = repository
        start = f'{{"text" : "{delivery_id} \\u2693 ⚓ \\/", "repository":{{"id": {number},"full_name":"{name}"}}'
        end = "}\r\n"
        padding = max(0, size - len((start + end).encode()) - len(',"padding":""'))
        middle = f',"padding":"{"." * padding}"' if size else ""
        body = (start + middle + end).encode()
        headers = [
            ("User-Agent", "GitHub-Hookshot/044aadd"),
            ("Content-Type", "application/json"),
            ("X-GitHub-Event", "push"),
            ("X-GitHub-Delivery", delivery_id),
            ("X-GitHub-Hook-ID", "4711"),
            ("X-Hub-Signature-256", signature(body)),
            ("X-Repeated", "one"),
            ("X-Repeated", "two"),
        ]
        return cls(delivery_id, repository, body, headers)

    def difference(self, event):
        """What is wrong with it as it came out of the server; nothing if it is as it was sent."""
        if event.event_id != self.delivery_id:
            return f"event_id is {event.event_id!r}"
        if event.body != self.body:
            return f"another body: {event.body[:200]!r}"
        came = [(header.name, header.values) for header in event.headers]
        odd = [name for name, _ in came if not name or name != canonical(name)]
        if odd:
            return f"headers are not spelt as Go spells them: {odd}"
        for name in {canonical(name) for name, _ in self.headers}:
            wanted = [value for other, value in self.headers if canonical(other) == name]
            got = [value for other, value in came if other == name]
            if got != wanted:
                return f"{name} is {got}, not {wanted}"
        if dict(came)["X-Hub-Signature-256"] != signature(event.body):
            return "its signature does not hold"
        return None


def signature(body):
    return "sha256=" + hmac.new(SECRET, body, hashlib.sha256).hexdigest()


def canonical(name):
    """As Go's net/textproto spells a header's name."""
    return "-".join(part[:1].upper() + part[1:].lower() for part in name.split("-"))


class Server:
    """The server that is tried."""

    def __init__(self, arguments):
        channel = grpc.insecure_channel(arguments.grpc)
        grpc.channel_ready_future(channel).result(timeout=PATIENCE)
        with tempfile.TemporaryDirectory(prefix="gitstafette-strict-") as folder:
            self.generate(arguments.contract, folder)
            sys.path.insert(0, folder)
            self.wire = import_module("gitstafette.v1.gitstafette_pb2")
            self.info_wire = import_module("info.gitstafette_info_pb2")
            self.stub = import_module("gitstafette.v1.gitstafette_pb2_grpc").GitstafetteStub(channel)
            self.info = import_module("info.gitstafette_info_pb2_grpc").InfoStub(channel)
        self.webhooks = urllib.parse.urlsplit(arguments.http)
        self.admin = urllib.parse.urlsplit(arguments.admin)
        self.name = arguments.name
        # What each repository has stored, in order.
        self.stored = {LIGHTHOUSE: [], ANCHOR: []}

    @staticmethod
    def generate(contract, folder):
        files = ["gitstafette/v1/gitstafette.proto", "info/gitstafette_info.proto"]
        options = [f"-I{contract}", f"--python_out={folder}", f"--grpc_python_out={folder}"]
        if protoc.main(["protoc", *options, *files]) != 0:
            sys.exit("the contract cannot be compiled")

    def post(self, webhook):
        """Sends it over HTTP, as GitHub does; its sequence."""
        connection = http.client.HTTPConnection(self.webhooks.netloc, timeout=PATIENCE)
        connection.putrequest("POST", self.webhooks.path, skip_accept_encoding=True)
        for name, value in webhook.headers:
            connection.putheader(name, value)
        connection.putheader("Content-Length", str(len(webhook.body)))
        connection.endheaders(webhook.body)
        answer = connection.getresponse()
        text = answer.read()
        connection.close()
        if answer.status != 201:
            raise AssertionError(f"{webhook.delivery_id}: {answer.status} {text!r}")
        self.stored[webhook.repository].append(webhook)
        return json.loads(text)["sequence"]

    def fetch(self, client, repository, after=0, seconds=1):
        """A whole stream, to its end."""
        stream = Stream(self, client, repository[0], after, seconds)
        stream.read()
        return stream

    def push(self, webhook, token=TOKEN, client="relay"):
        # The Go server allocates its list twice as long as it fills: the first half goes out as empty messages.
        empty = [self.wire.Header() for _ in webhook.headers]
        filled = [self.wire.Header(name=canonical(name), values=value) for name, value in webhook.headers]
        event = self.wire.WebhookEvent(event_id=webhook.delivery_id, body=webhook.body, headers=empty + filled)
        request = self.wire.WebhookEventPushRequest(
            cliend_id=client, repository_id=webhook.repository[0], webhook_event=event
        )
        return self.stub.WebhookEventPush(request, metadata=metadata(token), timeout=PATIENCE)

    def status(self, client, repository):
        request = self.wire.WebhookEventStatusRequest(client_id=client, repository_id=repository[0])
        return self.stub.WebhookEventStatus(request, metadata=metadata(TOKEN), timeout=PATIENCE)

    def statuses(self, client):
        request = self.wire.WebhookEventStatusesRequest(client_id=client)
        return list(self.stub.WebhookEventStatuses(request, metadata=metadata(TOKEN), timeout=PATIENCE))

    def dead_letters(self, delivery_id):
        """Who is said not to have got it."""
        connection = http.client.HTTPConnection(self.admin.netloc, timeout=PATIENCE)
        path = f"/v1/dead-letters?delivery={delivery_id}"
        connection.request("GET", path, headers={"Authorization": f"Bearer {TOKEN}"})
        answer = connection.getresponse()
        text = answer.read()
        connection.close()
        if answer.status != 200:
            raise AssertionError(f"GET {path}: {answer.status} {text!r}")
        return [report["client"] for event in json.loads(text)["events"] for report in event["reports"]]


class Stream:
    """One FetchWebhookEvents."""

    def __init__(self, server, client, repository_id, after, seconds):
        request = server.wire.WebhookEventsRequest(
            client_id=client, repository_id=repository_id, last_received_event_id=after, duration_secs=seconds
        )
        self.started = time.monotonic()
        self.call = server.stub.FetchWebhookEvents(request, metadata=metadata(TOKEN), timeout=PATIENCE)
        # They come when the stream stands.
        self.call.initial_metadata()
        self.events = []
        self.signs_of_life = 0

    def next(self):
        """The next message that has events, of which there may be several."""
        for message in self.call:
            if message.webhook_events:
                self.events.extend(message.webhook_events)
                return True
            self.signs_of_life += 1
        return False

    def read(self):
        """To its end, which is an error if it is not OK."""
        while self.next():
            pass
        self.lasted = time.monotonic() - self.started

    def ids(self):
        return [event.event_id for event in self.events]


def metadata(token):
    return [("authorization", f"Bearer {token}")] if token is not None else []


def ids(webhooks):
    return [webhook.delivery_id for webhook in webhooks]


def refusal(call):
    """The status that a call ends with."""
    try:
        answer = call()
        if hasattr(answer, "__next__"):
            list(answer)
        return grpc.StatusCode.OK
    except grpc.RpcError as error:
        return error.code()


def tokens(server, checks):
    wire, stub = server.wire, server.stub
    unsigned = wire.WebhookEvent(event_id="unsigned", body=Webhook.of("unsigned").body)
    unsigned.headers.add(name="X-Github-Event", values="push")
    unsigned.headers.add(name="X-Github-Delivery", values="unsigned")
    unsigned.headers.add(name="Content-Type", values="application/json")
    number = LIGHTHOUSE[0]
    requests = {
        "FetchWebhookEvents": wire.WebhookEventsRequest(client_id="x", repository_id=number, duration_secs=1),
        "WebhookEventStatus": wire.WebhookEventStatusRequest(client_id="x", repository_id=number),
        "WebhookEventStatuses": wire.WebhookEventStatusesRequest(client_id="x"),
        "WebhookEventPush": wire.WebhookEventPushRequest(cliend_id="x", repository_id=number, webhook_event=unsigned),
    }
    for name, request in requests.items():
        method = getattr(stub, name)
        for kind, token in [("without a token", None), ("with a wrong token", "wrong")]:
            code = refusal(lambda: method(request, metadata=metadata(token), timeout=PATIENCE))
            checks.same(f"{name} {kind} is UNAUTHENTICATED", code, grpc.StatusCode.UNAUTHENTICATED)


def info(server, checks):
    request = server.info_wire.GetInfoRequest(client_id="strict", client_endpoint="nowhere")
    answer = server.info.GetInfo(request, metadata=metadata(TOKEN), timeout=PATIENCE)
    checks.that("GetInfo: alive, a version", answer.alive and answer.version)
    checks.same("GetInfo: the name", answer.name, server.name)
    checks.same("GetInfo: a server", answer.instance_type, server.info_wire.SERVER)


def live(server, checks):
    """What comes while the stream stands, and how the stream ends."""
    checks.same("status of a client that never fetched", server.status("live", LIGHTHOUSE).status, "unknown")
    stream = Stream(server, "live", LIGHTHOUSE[0], 0, 4)
    for number in range(1, 4):
        webhook = Webhook.of(f"live-{number}")
        sent = time.monotonic()
        server.post(webhook)
        checks.that(f"{webhook.delivery_id} comes while the stream stands", stream.next())
        latency = (time.monotonic() - sent) * 1000
        difference = webhook.difference(stream.events[-1])
        checks.that(f"{webhook.delivery_id} is as it was sent", not difference, difference or f"{latency:.1f} ms")
    checks.same("status while the stream stands", server.status("live", LIGHTHOUSE).status, "attached")
    stream.read()
    checks.same("in order, each once", stream.ids(), ids(server.stored[LIGHTHOUSE]))
    checks.that("the stream ends without an error", stream.call.code() == grpc.StatusCode.OK)
    checks.that("about when its duration is over", 3.5 <= stream.lasted <= 10, f"{stream.lasted:.1f} s of 4")
    checks.that("a silent stream has signs of life", stream.signs_of_life > 0, f"{stream.signs_of_life} empty messages")
    checks.same("status after the stream", server.status("live", LIGHTHOUSE).status, "away")

    between = Webhook.of("between-1")
    server.post(between)
    again = server.fetch("live", LIGHTHOUSE)
    checks.same("what was stored between two streams comes on the next", again.ids(), ["between-1"])


def resume(server, checks):
    """Where a stream starts."""
    sequences = [server.post(Webhook.of(f"resume-{number}")) for number in range(1, 4)]
    for number in range(1, 3):
        server.post(Webhook.of(f"anchor-{number}", ANCHOR))
    for attempt in ["", ", asked again"]:
        after = server.fetch("resumes", LIGHTHOUSE, after=sequences[0])
        checks.same(f"after a sequence comes what is after it{attempt}", after.ids(), ["resume-2", "resume-3"])

    everything = ids(server.stored[LIGHTHOUSE])
    first = server.fetch("cursor", LIGHTHOUSE)
    checks.same("a client without a cursor starts at the oldest", first.ids(), everything)
    server.post(Webhook.of("resume-4"))
    second = server.fetch("cursor", LIGHTHOUSE)
    checks.same("what a finished stream had does not come again", second.ids(), ["resume-4"])
    checks.same("nothing new, nothing comes", server.fetch("cursor", LIGHTHOUSE).ids(), [])
    anchor = server.fetch("cursor", ANCHOR)
    checks.same("the cursor is this repository's only", anchor.ids(), ["anchor-1", "anchor-2"])
    other = server.fetch("other", LIGHTHOUSE)
    checks.same("and this client's only", other.ids(), ids(server.stored[LIGHTHOUSE]))
    named = server.fetch("by-name", (LIGHTHOUSE[1], ""))
    checks.same("a repository can be named", named.ids(), ids(server.stored[LIGHTHOUSE]))

    request = server.wire.WebhookEventsRequest(client_id="lost", repository_id=ELSEWHERE[0], duration_secs=1)
    call = server.stub.FetchWebhookEvents
    code = refusal(lambda: call(request, metadata=metadata(TOKEN), timeout=PATIENCE))
    checks.same("a repository outside the watchlist is NOT_FOUND", code, grpc.StatusCode.NOT_FOUND)


def sizes(server, checks):
    """What comes near to the 4 MiB that a message may have, and what goes beyond."""
    start = server.post(Webhook.of("before-sizes"))
    sent = [Webhook.of(f"large-{number}", size=2 * MIB - 50) for number in range(1, 4)]
    sent += [Webhook.of("nearly-too-large", size=4 * MIB - (8 << 10))]
    too_large = Webhook.of("too-large", size=5 * MIB)
    last = Webhook.of("after-sizes")
    for webhook in [*sent, too_large, last]:
        server.post(webhook)
    stream = server.fetch("sizes", LIGHTHOUSE, after=start, seconds=4)
    checks.same("all but what is too large comes, in order", stream.ids(), ids([*sent, last]))
    wrong = [pair for pair in map(Webhook.difference, [*sent, last], stream.events) if pair]
    checks.same("large ones are as they were sent", wrong, [])
    until = time.monotonic() + 10
    while not (clients := server.dead_letters("too-large")) and time.monotonic() < until:
        time.sleep(0.1)
    is_its = any("sizes" in name for name in clients)
    checks.that("what is too large is a dead letter of that client", is_its, str(clients))
    checks.same("and does not come later", server.fetch("sizes", LIGHTHOUSE).ids(), [])


def pushes(server, checks):
    """What a relaying server pushes."""
    pushed = Webhook.of("pushed-1", ANCHOR)
    answer = server.push(pushed)
    checks.same("a push is stored", (answer.accepted, answer.response_code), (True, "201"))
    answer = server.push(pushed)
    checks.same("pushed again it is a repeat", (answer.accepted, answer.response_code), (True, "204"))
    server.stored[ANCHOR].append(pushed)

    by_signature = Webhook.of("pushed-2", ANCHOR)
    answer = server.push(by_signature, token=None)
    checks.same("without a token its signature will do", (answer.accepted, answer.response_code), (True, "201"))
    server.stored[ANCHOR].append(by_signature)

    stream = server.fetch("cursor", ANCHOR)
    checks.same("pushed events are fetched, each once", stream.ids(), ["pushed-1", "pushed-2"])
    wrong = [pair for pair in map(Webhook.difference, [pushed, by_signature], stream.events) if pair]
    checks.same("as they were pushed, without the empty headers", wrong, [])

    forged = Webhook.of("forged", ANCHOR)
    forged.body = forged.body.replace(b"forged", b"changed")
    try:
        refused = not server.push(forged, token=None).accepted
    except grpc.RpcError as error:
        refused = error.code() == grpc.StatusCode.UNAUTHENTICATED
    checks.that("without a token and with a wrong signature it is refused", refused)
    answer = server.push(Webhook.of("elsewhere", ELSEWHERE))
    checks.same("outside the watchlist it is not taken", (answer.accepted, answer.response_code), (False, "406"))
    checks.that("and the answer says why", answer.response_description, answer.response_description)
    checks.same("nothing refused is stored", server.status("cursor", ANCHOR).count, len(server.stored[ANCHOR]))


def statuses(server, checks):
    # The event that is too large for this wire is stored all the same.
    counts = {repository[0]: len(webhooks) for repository, webhooks in server.stored.items()}
    answer = server.status("cursor", LIGHTHOUSE)
    got = (answer.server_id, answer.repository_id, answer.count, answer.status)
    checks.same("the status of a repository", got, (server.name, LIGHTHOUSE[0], counts[LIGHTHOUSE[0]], "away"))
    answer = server.status("never-came", ANCHOR)
    checks.same("of a client that never fetched", (answer.count, answer.status), (counts[ANCHOR[0]], "unknown"))
    answer = server.status("cursor", ELSEWHERE)
    got = (answer.repository_id, answer.count, answer.status)
    checks.same("of a repository outside the watchlist", got, (ELSEWHERE[0], 0, "not watched"))

    answers = server.statuses("cursor")
    got = {answer.repository_id: answer.count for answer in answers}
    checks.same("the statuses are one for each repository", (got, len(answers)), (counts, len(counts)))
    odd = [answer.server_id for answer in answers if answer.server_id != server.name]
    checks.same("each with the server's name", odd, [])
    checks.same("and the client's status", {answer.status for answer in answers}, {"away"})


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--contract", required=True, help="the folder of the Go implementation's proto files")
    parser.add_argument("--grpc", required=True, help="host:port")
    parser.add_argument("--http", required=True, help="the URL for webhooks")
    parser.add_argument("--admin", required=True, help="the URL of the admin listener")
    parser.add_argument("--name", required=True, help="the server's name")
    parser.add_argument("--only", help="one part alone")
    arguments = parser.parse_args()
    server, checks = Server(arguments), Checks()
    for part in [tokens, info, live, resume, sizes, pushes, statuses]:
        if arguments.only not in (None, part.__name__):
            continue
        try:
            part(server, checks)
        except Exception as error:
            traceback.print_exc()
            checks.that(f"{part.__name__} goes through", False, f"{type(error).__name__}: {error}"[:300])
    if checks.failed:
        print(f"{checks.failed} of {checks.passed + checks.failed} checks failed")
        sys.exit(1)
    print(f"{checks.passed} checks passed")


if __name__ == "__main__":
    main()
