//! Reading what a stream holds of a topic, in its order: for people who want to look.
//!
//! The server is asked for some messages at a time, by a consumer that acknowledges nothing, so that
//! looking changes nothing in the stream, and that the server forgets soon after the last question.
//! Whatever goes wrong ends the connection; the next one goes on behind the last message.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use amps_delivery::LinkEnd;
use tokio::io::ReadBuf;

use crate::address::Address;
use crate::api::{self, API, AnswerError, Ask, Delivery};
use crate::codec::{self, Decoder, Frame, Msg, PING, PONG};
use crate::config::Config;
use crate::link::Stream;
use crate::logon;
use crate::subject::subject;
use crate::transport::{Opener, token};

/// Messages asked for at a time.
const BATCH: u32 = 256;

/// How long the server waits for messages before it says that there are none.
const WAIT: Duration = Duration::from_secs(10);

/// A server that is so much later with saying so does not have the consumer any more.
const LATE: Duration = Duration::from_secs(5);

/// Bytes read at once.
const READ_BATCH: usize = 64 * 1024;

/// The most that is read of one message.
const LARGEST: usize = 64 << 20;

/// Reads a stream over one connection after another.
pub struct Reader {
    config: Config,
    name: String,
    opener: Arc<dyn Opener>,
    subject: String,
    /// The place to go on with; none: behind what the stream holds when it is found.
    next: Option<u64>,
    /// When the stream was made that this place is in.
    created: Option<String>,
    connection: Option<Connection>,
}

/// What was read.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Read {
    /// The stream was found; what follows is in it.
    Found {
        /// Its name.
        stream: String,
        /// It is not the stream that was read before, and is read from its beginning.
        anew: bool,
    },
    /// A message.
    Message {
        /// Its place in the stream: the stream sequence.
        place: u64,
        /// What was published.
        body: Vec<u8>,
    },
}

struct Connection {
    stream: Box<dyn Stream>,
    decoder: Decoder,
    out: Vec<u8>,
    written: usize,
    inbox: String,
    api: String,
    stage: Stage,
    /// The stream, and the consumer that reads it.
    bound: String,
    consumer: String,
    /// What the consumer counts its next message as.
    number: u64,
    /// Messages that were asked for and have not come.
    asked: u32,
    until: Option<Duration>,
    heard_at: Option<Duration>,
    pinged_at: Option<Duration>,
    question: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Greeting,
    Logon,
    Naming,
    Looking,
    Consuming,
    Reading,
}

impl Reader {
    /// Reads the stream that `config` names or that takes its topic: from its first message on, or
    /// what is stored after it was found. `name` is what servers list the connection by.
    ///
    /// # Errors
    /// The topic has no subject.
    pub fn new(
        config: Config,
        name: impl Into<String>,
        opener: Arc<dyn Opener>,
        from_start: bool,
    ) -> Result<Self, crate::subject::SubjectError> {
        Ok(Reader {
            subject: subject(&config.topic)?,
            config,
            name: name.into(),
            opener,
            next: from_start.then_some(1),
            created: None,
            connection: None,
        })
    }

    /// Connects to a server. What is read goes on behind the last message.
    ///
    /// # Errors
    /// Nobody is there, or it is no address.
    pub async fn connect(&mut self, address: &str) -> Result<(), LinkEnd> {
        self.connection = None;
        let connect = |why: String| LinkEnd::Connect(why);
        let address: Address = address
            .parse()
            .map_err(|error: crate::AddressError| connect(error.to_string()))?;
        self.config.tls = address.is_encrypted();
        if let Some(credentials) = address.credentials() {
            self.config.credentials = credentials.clone();
        }
        let stream = self.opener.open(&address).await.map_err(connect)?;
        let inbox = &self.config.inbox_prefix;
        self.connection = Some(Connection {
            stream,
            decoder: Decoder::new(LARGEST),
            out: Vec::new(),
            written: 0,
            inbox: format!("{inbox}.{}.", token()),
            api: match &self.config.domain {
                Some(domain) => format!("$JS.{domain}.API"),
                None => API.to_owned(),
            },
            stage: Stage::Greeting,
            bound: String::new(),
            consumer: String::new(),
            number: 1,
            asked: 0,
            until: None,
            heard_at: None,
            pinged_at: None,
            question: 0,
        });
        Ok(())
    }

    /// When [`poll_next`](Self::poll_next) has something to do, if nothing comes. Its time is that of
    /// `now` there.
    pub fn deadline(&self) -> Option<Duration> {
        let connection = self.connection.as_ref()?;
        let silent = match connection.pinged_at {
            Some(at) => Some(at + self.config.heartbeat),
            None => connection.heard_at.map(|at| at + self.config.heartbeat),
        };
        [connection.until, silent].into_iter().flatten().min()
    }

    /// The next message. While nobody asks, nothing is read, and the server waits.
    ///
    /// # Errors
    /// The connection ended: [`connect`](Self::connect) again.
    pub fn poll_next(
        &mut self,
        cx: &mut Context<'_>,
        now: Duration,
    ) -> Poll<Result<Read, LinkEnd>> {
        let Some(mut connection) = self.connection.take() else {
            return Poll::Ready(Err(LinkEnd::Closed));
        };
        let polled = connection.poll(self, cx, now);
        if !matches!(polled, Poll::Ready(Err(_))) {
            self.connection = Some(connection);
        }
        polled
    }
}

impl Connection {
    fn poll(
        &mut self,
        of: &mut Reader,
        cx: &mut Context<'_>,
        now: Duration,
    ) -> Poll<Result<Read, LinkEnd>> {
        if self.heard_at.is_none() {
            self.heard_at = Some(now);
            self.until = Some(now + of.config.timeout);
        }
        loop {
            // Frames borrow from it.
            let mut decoder = std::mem::replace(&mut self.decoder, Decoder::new(0));
            let read = loop {
                match decoder.next_frame() {
                    Err(error) => break Err(LinkEnd::Protocol(error.to_string())),
                    Ok(None) => break Ok(None),
                    Ok(Some(frame)) => match self.take(of, frame, now) {
                        Ok(None) => {}
                        done => break done,
                    },
                }
            };
            self.decoder = decoder;
            if let Some(read) = read? {
                return Poll::Ready(Ok(read));
            }
            self.write(cx)?;
            match self.fill(cx) {
                Poll::Ready(filled) => filled?,
                Poll::Pending => {
                    self.tick(of, now)?;
                    // What was just asked has to go out.
                    self.write(cx)?;
                    return Poll::Pending;
                }
            }
            self.heard_at = Some(now);
            self.pinged_at = None;
        }
    }

    /// Does what is due by the clock.
    fn tick(&mut self, of: &Reader, now: Duration) -> Result<(), LinkEnd> {
        if self.until.is_some_and(|until| now >= until) {
            return Err(match self.stage {
                Stage::Greeting | Stage::Logon => LinkEnd::LogonTimeout,
                _ => LinkEnd::Unusable(format!(
                    "JetStream did not answer in time; stream {} may have no leader",
                    self.bound
                )),
            });
        }
        let silent = of.config.heartbeat;
        match (self.pinged_at, self.heard_at) {
            (Some(at), _) if now >= at + silent => {
                return Err(LinkEnd::HeartbeatLost);
            }
            (None, Some(at)) if now >= at + silent => {
                self.pinged_at = Some(now);
                self.out.extend_from_slice(PING);
            }
            _ => {}
        }
        Ok(())
    }

    fn write(&mut self, cx: &mut Context<'_>) -> Result<(), LinkEnd> {
        let io = |error: io::Error| LinkEnd::Io(error.to_string());
        while self.written < self.out.len() {
            let stream = Pin::new(&mut *self.stream);
            match stream.poll_write(cx, &self.out[self.written..]) {
                Poll::Ready(Ok(0)) => return Err(io(io::ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(count)) => self.written += count,
                Poll::Ready(Err(error)) => return Err(io(error)),
                Poll::Pending => return Ok(()),
            }
        }
        self.out.clear();
        self.written = 0;
        match Pin::new(&mut *self.stream).poll_flush(cx) {
            Poll::Ready(Err(error)) => Err(io(error)),
            _ => Ok(()),
        }
    }

    fn fill(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), LinkEnd>> {
        let space = self.decoder.space();
        let most = space.len().min(READ_BATCH);
        let mut buffer = ReadBuf::new(&mut space[..most]);
        let read = ready!(Pin::new(&mut *self.stream).poll_read(cx, &mut buffer));
        let count = match read {
            Ok(()) => buffer.filled().len(),
            Err(error) => return Poll::Ready(Err(LinkEnd::Io(error.to_string()))),
        };
        if count == 0 {
            return Poll::Ready(Err(LinkEnd::Closed));
        }
        self.decoder.filled(count);
        Poll::Ready(Ok(()))
    }

    fn ask(&mut self, ask: Ask<'_>, patience: Duration, now: Duration) {
        self.question += 1;
        let (subject, body) = ask.request(&self.api);
        let reply = format!("{}{}", self.inbox, self.question);
        codec::publish(&mut self.out, &subject, &reply, &body);
        self.until = Some(now + patience);
    }

    fn take(
        &mut self,
        of: &mut Reader,
        frame: Frame<'_>,
        now: Duration,
    ) -> Result<Option<Read>, LinkEnd> {
        match frame {
            Frame::Info(json) if self.stage == Stage::Greeting => {
                let server = logon::info(json)?;
                logon::hello(&mut self.out, &server, &of.name, &of.config, &self.inbox)?;
                self.stage = Stage::Logon;
                self.until = Some(now + of.config.timeout);
            }
            Frame::Pong if self.stage == Stage::Logon => match of.config.stream.clone() {
                Some(stream) => self.look(stream, of, now)?,
                None => {
                    self.stage = Stage::Naming;
                    self.ask(Ask::Names(&of.subject), of.config.timeout, now);
                }
            },
            Frame::Ping => self.out.extend_from_slice(PONG),
            Frame::Err(text) => return Err(logon::wrong(text)),
            Frame::Msg(msg) => return self.message(of, &msg, now),
            Frame::Info(_) | Frame::Pong | Frame::Ok => {}
        }
        Ok(None)
    }

    fn look(&mut self, stream: String, of: &Reader, now: Duration) -> Result<(), LinkEnd> {
        api::check_name(&stream)?;
        self.stage = Stage::Looking;
        self.ask(Ask::Info(&stream), of.config.timeout, now);
        self.bound = stream;
        Ok(())
    }

    fn message(
        &mut self,
        of: &mut Reader,
        msg: &Msg<'_>,
        now: Duration,
    ) -> Result<Option<Read>, LinkEnd> {
        let Some(question) = msg.subject.strip_prefix(&self.inbox) else {
            return self.delivered(of, msg, now);
        };
        if question.parse() != Ok(self.question) {
            return Ok(None);
        }
        if let (Some(status), true) = (msg.status(), msg.payload.is_empty()) {
            return match status {
                // There was nothing for so long, or not as much.
                404 | 408 if self.stage == Stage::Reading => {
                    self.more(now);
                    Ok(None)
                }
                100 => Ok(None),
                _ if self.stage == Stage::Reading => Err(LinkEnd::Unusable(format!(
                    "the server reads no more of stream {}: {}",
                    self.bound,
                    msg.status_line()
                ))),
                _ => Err(LinkEnd::Unusable(logon::NO_JETSTREAM.to_owned())),
            };
        }
        match self.stage {
            Stage::Naming => {
                let names = api::names(msg.payload);
                let names = names.map_err(|error| cannot("find the stream", &error))?;
                let Some(stream) = names.into_iter().next() else {
                    return Err(LinkEnd::Unusable(format!(
                        "no stream takes the subject {} of topic {}; one is waited for",
                        of.subject, of.config.topic
                    )));
                };
                self.look(stream, of, now)?;
            }
            Stage::Looking => {
                let stream = api::info(msg.payload);
                let stream = stream.map_err(|error| cannot("tell of the stream", &error))?;
                let anew = of
                    .created
                    .as_ref()
                    .is_some_and(|old| *old != stream.created);
                let from = match of.next {
                    Some(_) if anew => 1,
                    Some(next) => next,
                    None => stream.state.last_seq.saturating_add(1),
                };
                of.next = Some(from);
                of.created = Some(stream.created);
                self.stage = Stage::Consuming;
                let bound = self.bound.clone();
                let ask = Ask::Consume(&bound, &of.subject, from);
                self.ask(ask, of.config.timeout, now);
                let stream = bound;
                return Ok(Some(Read::Found { stream, anew }));
            }
            Stage::Consuming => {
                let consumer = api::consumer(msg.payload);
                self.consumer = consumer.map_err(|error| cannot("read the stream", &error))?;
                api::check_name(&self.consumer)?;
                self.stage = Stage::Reading;
                self.more(now);
            }
            Stage::Greeting | Stage::Logon | Stage::Reading => {}
        }
        Ok(None)
    }

    /// Asks for more messages.
    fn more(&mut self, now: Duration) {
        self.asked = BATCH;
        let (bound, consumer) = (self.bound.clone(), self.consumer.clone());
        let ask = Ask::Next(&bound, &consumer, BATCH, WAIT);
        self.ask(ask, WAIT + LATE, now);
    }

    /// A message of the stream.
    fn delivered(
        &mut self,
        of: &mut Reader,
        msg: &Msg<'_>,
        now: Duration,
    ) -> Result<Option<Read>, LinkEnd> {
        let Some(delivery) = msg.reply.and_then(Delivery::read) else {
            return Ok(None);
        };
        if delivery.number != self.number {
            let why = "a message of the stream got lost on its way; they are read again from there";
            return Err(LinkEnd::Protocol(why.to_owned()));
        }
        self.number += 1;
        self.asked = self.asked.saturating_sub(1);
        match self.asked {
            0 => self.more(now),
            _ => self.until = Some(now + WAIT + LATE),
        }
        if of.next.is_some_and(|next| delivery.place < next) {
            return Ok(None);
        }
        of.next = Some(delivery.place.saturating_add(1));
        Ok(Some(Read::Message {
            place: delivery.place,
            body: msg.payload.to_vec(),
        }))
    }
}

fn cannot(what: &str, error: &AnswerError) -> LinkEnd {
    LinkEnd::Unusable(format!("JetStream cannot {what}: {error}"))
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::sync::Mutex;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};

    use super::*;
    use crate::transport::Opening;

    /// Opens the ends that it was given, one after the other.
    struct Ends(Mutex<Vec<DuplexStream>>);

    impl Opener for Ends {
        fn open<'a>(&'a self, _: &'a Address) -> Opening<'a> {
            let end = self.0.lock().unwrap().pop().unwrap();
            Box::pin(async move { Ok(Box::new(end) as Box<dyn Stream>) })
        }
    }

    async fn next(reader: &mut Reader) -> Result<Read, LinkEnd> {
        poll_fn(|cx| reader.poll_next(cx, Duration::ZERO)).await
    }

    /// The server's side, as far as a reader gets to know it.
    struct Server {
        end: DuplexStream,
        inbox: String,
    }

    impl Server {
        /// Reads until that is there; all that was read.
        async fn asked(&mut self, text: &str) -> String {
            let (mut read, mut part) = (String::new(), [0; 4096]);
            while !read.contains(text) {
                let count = self.end.read(&mut part).await.unwrap();
                assert!(count > 0, "{read}");
                read.push_str(std::str::from_utf8(&part[..count]).unwrap());
            }
            read
        }

        async fn say(&mut self, bytes: &str) {
            self.end.write_all(bytes.as_bytes()).await.unwrap();
        }

        async fn answer(&mut self, question: u64, body: &str) {
            let (inbox, length) = (self.inbox.clone(), body.len());
            self.say(&format!("MSG {inbox}{question} 1 {length}\r\n{body}\r\n"))
                .await;
        }

        /// Up to where messages come: the stream was made then, and the consumer is asked for them.
        async fn begin(&mut self, created: &str, from: u64) {
            self.say("INFO {\"headers\":true,\"max_payload\":1024}\r\n")
                .await;
            let said = self.asked("PING").await;
            let inbox = said.split("SUB ").nth(1).unwrap();
            self.inbox = inbox.split('>').next().unwrap().to_owned();
            self.say("PONG\r\n").await;
            self.asked("STREAM.NAMES").await;
            self.answer(1, "{\"streams\":[\"S\"]}").await;
            self.asked("STREAM.INFO.S").await;
            let info = format!(
                "{{\"config\":{{\"name\":\"S\"}},\"created\":\"{created}\",\
                 \"state\":{{\"last_seq\":20}}}}"
            );
            self.answer(2, &info).await;
            self.asked(&format!("\"opt_start_seq\":{from}")).await;
            self.answer(3, "{\"name\":\"C\"}").await;
            self.asked("CONSUMER.MSG.NEXT.S.C").await;
        }

        async fn deliver(&mut self, place: u64, number: u64) {
            self.say(&format!(
                "MSG t 1 $JS.ACK.S.C.1.{place}.{number}.1.0 1\r\nx\r\n"
            ))
            .await;
        }
    }

    fn pair(ends: &Ends) -> Server {
        let (ours, end) = tokio::io::duplex(1 << 16);
        ends.0.lock().unwrap().push(ours);
        let inbox = String::new();
        Server { end, inbox }
    }

    fn found(anew: bool) -> Read {
        let stream = "S".to_owned();
        Read::Found { stream, anew }
    }

    fn message(place: u64) -> Read {
        let body = b"x".to_vec();
        Read::Message { place, body }
    }

    #[tokio::test]
    async fn what_got_lost_is_read_again_and_nothing_twice() {
        let ends = Arc::new(Ends(Mutex::default()));
        let opener: Arc<dyn Opener> = ends.clone();
        let mut reader = Reader::new(Config::new("t"), "me", opener, true).unwrap();

        let mut server = pair(&ends);
        reader.connect("nats://a").await.unwrap();
        let script = async {
            server.begin("then", 1).await;
            server.deliver(3, 1).await;
            server.deliver(7, 3).await;
        };
        let read = async {
            assert_eq!(next(&mut reader).await, Ok(found(false)));
            assert_eq!(next(&mut reader).await, Ok(message(3)));
            let end = next(&mut reader).await;
            assert!(matches!(end, Err(LinkEnd::Protocol(_))), "{end:?}");
            assert_eq!(next(&mut reader).await, Err(LinkEnd::Closed));
        };
        tokio::join!(script, read);

        let mut server = pair(&ends);
        reader.connect("nats://a").await.unwrap();
        let script = async {
            server.begin("then", 4).await;
            // One that was read, and there is nothing for a while.
            server.deliver(3, 1).await;
            server.deliver(5, 2).await;
            let inbox = server.inbox.clone();
            server
                .say(&format!(
                    "HMSG {inbox}4 1 32 32\r\nNATS/1.0 408 Request Timeout\r\n\r\n\r\n"
                ))
                .await;
            server.asked("CONSUMER.MSG.NEXT.S.C").await;
            server.deliver(6, 3).await;
            server
                .say(&format!(
                    "HMSG {inbox}5 1 33 33\r\nNATS/1.0 409 Consumer Deleted\r\n\r\n\r\n"
                ))
                .await;
        };
        let read = async {
            assert_eq!(next(&mut reader).await, Ok(found(false)));
            assert_eq!(next(&mut reader).await, Ok(message(5)));
            assert_eq!(next(&mut reader).await, Ok(message(6)));
            let end = next(&mut reader).await;
            let told = matches!(&end, Err(LinkEnd::Unusable(why)) if why.contains("409 Consumer"));
            assert!(told, "{end:?}");
        };
        tokio::join!(script, read);

        // Another stream of that name is read from its beginning.
        let mut server = pair(&ends);
        reader.connect("nats://a").await.unwrap();
        let read = async {
            assert_eq!(next(&mut reader).await, Ok(found(true)));
            next(&mut reader).await
        };
        tokio::select! {
            () = server.begin("now", 1) => {}
            read = read => panic!("{read:?}"),
        }
    }

    /// A server that says nothing is asked whether it is there, and left.
    #[tokio::test]
    async fn silence_ends_a_connection() {
        let ends = Arc::new(Ends(Mutex::default()));
        let opener: Arc<dyn Opener> = ends.clone();
        let mut config = Config::new("t");
        config.timeout = Duration::from_secs(1_000);
        let mut reader = Reader::new(config, "me", opener, true).unwrap();
        let mut server = pair(&ends);
        reader.connect("nats://a").await.unwrap();
        let mut at = |seconds: u64| {
            let waker = std::task::Waker::noop();
            let mut cx = Context::from_waker(waker);
            let polled = reader.poll_next(&mut cx, Duration::from_secs(seconds));
            (polled, reader.deadline())
        };
        assert_eq!(at(0), (Poll::Pending, Some(Duration::from_secs(15))));
        assert_eq!(at(15), (Poll::Pending, Some(Duration::from_secs(30))));
        server.asked("PING").await;
        let lost = Poll::Ready(Err(LinkEnd::HeartbeatLost));
        assert_eq!(at(30), (lost, None));
    }
}
