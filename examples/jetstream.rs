//! Publishes one order to NATS JetStream, and makes the stream if there is none:
//! `cargo run --features jetstream --example jetstream -- nats://HOST:4222 [STORE]`.
//!
//! Look at it: `nats stream view ORDERS`.

use std::time::Duration;

use amps::client::Client;
use amps::client::jetstream::{self, Config, Create};
use amps::store::{Options, Store};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let address = args
        .next()
        .unwrap_or_else(|| "nats://127.0.0.1:4222".to_owned());
    let path = args.next().unwrap_or_else(|| "orders.store".to_owned());

    let store = Store::open(&path, Options::new().client_name("order-entry"))?;
    println!("{}", store.report());
    // A stream that is made here is this publisher's alone: each message is stored once, in order.
    let mut config = Config::new("orders");
    config.create = Some(Create {
        name: "ORDERS".to_owned(),
        replicas: 1,
    });
    let client = Client::builder("order-entry")
        .transport(jetstream::transport(config))
        .server(address)
        .store(store)
        .on_failed_write(|failed| async move {
            eprintln!("refused: {} {:?}", failed.reason, failed.original);
            Ok(())
        })
        .open()
        .await?;
    let receipt = client.publish("orders", r#"{"order":1}"#).await?;
    match client.publish_flush(Duration::from_secs(10)).await {
        Ok(report) => println!("message {}: {report:?}", receipt.sequence()),
        Err(error) => println!("message {}: {error}", receipt.sequence()),
    }
    client.close(Duration::from_secs(10)).await;
    Ok(())
}
