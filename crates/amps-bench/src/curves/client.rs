//! A process with many publishing threads, or with many clients.

use std::sync::Arc;
use std::time::{Duration, Instant};

use amps_client::Client;
use amps_store::{Options, Store};
use tokio::runtime::Runtime;

use super::{Chart, sweep};
use crate::count::Nowhere;
use crate::net::{CLIENT_THREAD, PATIENCE, Server, flushed, logged_on, rested, runtime, store};
use crate::{Failure, Place, Plan, TOPIC};

const PAYLOAD: [u8; 256] = [0x5A; 256];

/// A client of its own server, or of none that ever answers.
struct Link {
    runtime: Runtime,
    client: Client,
    server: Option<Server>,
}

impl Link {
    fn open(store: Store, server: Option<Server>) -> Result<Self, Failure> {
        let runtime = runtime(CLIENT_THREAD)?;
        let builder = Client::builder("bench").store(store.clone());
        let client = runtime.block_on(async {
            let builder = match &server {
                Some(server) => builder.server(server.uri()),
                None => builder
                    .server("tcp://127.0.0.1:9/amps/json")
                    .connector(Arc::new(Nowhere))
                    .connect_timeout(Duration::from_secs(3600)),
            };
            let client = builder.open().await?;
            if server.is_some() {
                logged_on(&client).await?;
            }
            rested(&store).await?;
            Ok::<_, Failure>(client)
        })?;
        Ok(Link {
            runtime,
            client,
            server,
        })
    }

    /// Publishes from so many threads, and waits for the last ack if there is a server; messages
    /// per second.
    fn rate(&self, threads: u64, count: u64) -> Result<f64, Failure> {
        let begun = Instant::now();
        std::thread::scope(|scope| {
            let publishers: Vec<_> = (0..threads)
                .map(|_| {
                    scope.spawn(|| {
                        self.runtime.block_on(async {
                            for _ in 0..count / threads {
                                drop(self.client.publish(TOPIC, &PAYLOAD[..]).await?);
                            }
                            Ok::<_, Failure>(())
                        })
                    })
                })
                .collect();
            for publisher in publishers {
                publisher.join().map_err(|_| "a publisher panicked")??;
            }
            Ok::<_, Failure>(())
        })?;
        if self.server.is_some() {
            self.runtime.block_on(flushed(&self.client))?;
        }
        Ok(count as f64 / begun.elapsed().as_secs_f64())
    }

    fn close(self) {
        match self.server {
            Some(server) => {
                self.runtime.block_on(self.client.close(PATIENCE));
                server.stop();
            }
            None => drop(self.runtime.block_on(self.client.close(Duration::ZERO))),
        }
    }
}

pub(super) fn threads(plan: &Plan, place: &Place) -> Result<Vec<Chart>, Failure> {
    let count = plan.count(200_000);
    let measure = |_: &mut (), line, threads| {
        let server = match line {
            0 => None,
            _ => Some(Server::start()?),
        };
        let link = Link::open(store(&place.file("store")?, 512 << 20)?, server)?;
        let rate = link.rate(threads, count)?;
        link.close();
        Ok(rate)
    };
    let names = ["no link: publish alone", "to the last ack"];
    Ok(vec![Chart {
        name: "threads",
        title: "Publishing threads on one client, 256 B",
        x: "threads",
        y: "messages a second, all together",
        lines: sweep(plan, &names, &[1, 2, 4, 8], |_| Ok(()), measure)?,
    }])
}

/// Clients of one server, each with a store and a task of its own, on one thread, and all stores
/// together as large as that of a single one; messages per second.
fn many(place: &Place, clients: u64, count: u64) -> Result<f64, Failure> {
    let server = Server::start()?;
    let runtime = runtime(CLIENT_THREAD)?;
    let rate = runtime.block_on(async {
        let mut open = Vec::new();
        for n in 0..clients {
            let name = format!("bench-{n}");
            let options = Options::new().client_name(&name).preallocate(true);
            let store = Store::open(place.file(&name)?, options.capacity((512 << 20) / clients))?;
            let builder = Client::builder(&name)
                .server(server.uri())
                .store(store.clone());
            let client = builder.open().await?;
            logged_on(&client).await?;
            open.push(client);
        }
        let begun = Instant::now();
        let publishers: Vec<_> = open
            .iter()
            .map(|client| {
                let client = client.clone();
                tokio::spawn(async move {
                    for _ in 0..count / clients {
                        drop(client.publish(TOPIC, &PAYLOAD[..]).await?);
                    }
                    flushed(&client).await
                })
            })
            .collect();
        for publisher in publishers {
            publisher.await??;
        }
        let rate = count as f64 / begun.elapsed().as_secs_f64();
        for client in open {
            client.close(PATIENCE).await;
        }
        Ok::<_, Failure>(rate)
    })?;
    server.stop();
    Ok(rate)
}

pub(super) fn clients(plan: &Plan, place: &Place) -> Result<Vec<Chart>, Failure> {
    let count = plan.count(200_000);
    let measure = |_: &mut (), _, clients| many(place, clients, count);
    Ok(vec![Chart {
        name: "clients",
        title: "Clients in one process, each with its store, 256 B",
        x: "clients",
        y: "messages a second, all together",
        lines: sweep(
            plan,
            &["to the last ack"],
            &[1, 10, 100],
            |_| Ok(()),
            measure,
        )?,
    }])
}
