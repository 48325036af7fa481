//! Publishes one order to a server of yours: `cargo run --example publish -- URI [STORE]`.
//!
//! Stop the server, run it again, and look at what waits: `amps store list STORE`.

use std::time::Duration;

use amps::client::Client;
use amps::store::{Options, Store};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let uri = args
        .next()
        .unwrap_or_else(|| "tcp://127.0.0.1:9007/amps/json".to_owned());
    let path = args.next().unwrap_or_else(|| "orders.store".to_owned());

    let store = Store::open(&path, Options::new().client_name("order-entry"))?;
    println!("{}", store.report());
    let client = Client::builder("order-entry")
        .server(uri)
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
