//! What `tcps` addresses need besides the address: files with certificates, and a name.

use std::io::Read as _;
use std::path::Path;
use std::sync::Arc;

use amps_client::connector::{Connector, SchemeConnector, TlsConnector, TlsSetupError};
use amps_client::uri::{Scheme, Uri};
use amps_sandbox::TlsIdentity;

use crate::args::{DEFAULT_SERVER, Serve, Tls};
use crate::failure::{Exit, Failure};
use crate::lines::Source;
use crate::signals::Stop;

/// How to connect to these servers, decided before anything is created or opened.
///
/// # Errors
/// A URI that cannot be read, a file that cannot be read or does not hold what it should, or
/// options that none of the servers needs.
pub(crate) fn connector(
    servers: &[String],
    tls: &Tls,
    stop: &Stop,
) -> Result<Arc<dyn Connector>, Failure> {
    let secured = parse(servers)?
        .iter()
        .any(|uri| uri.scheme() == Scheme::Tcps);
    if !secured {
        return match tls.given() {
            None => Ok(Arc::new(SchemeConnector::new())),
            Some(option) => Err(Failure::new(
                Exit::Usage,
                format!("{option} is for TLS, and no server is a tcps:// one"),
            )),
        };
    }
    Ok(Arc::new(SchemeConnector::new().with_tls(made(tls, stop)?)))
}

/// TLS as the options say.
///
/// # Errors
/// A file that cannot be read or does not hold what it should.
pub(crate) fn made(tls: &Tls, stop: &Stop) -> Result<TlsConnector, Failure> {
    let mut builder = TlsConnector::builder();
    if let Some(file) = &tls.tls_ca {
        builder = builder.without_system_roots();
        builder = match is_file(file) {
            true => builder.authority_file(file),
            false => builder.authority_pem(read(file, stop)?),
        };
    }
    if let (Some(chain), Some(key)) = (&tls.tls_cert, &tls.tls_key) {
        builder = match is_file(chain) && is_file(key) {
            true => builder.client_certificate_files(chain, key),
            false => {
                let (chain, key) = both(chain, key, stop)?;
                builder.client_certificate_pem(chain, key)
            }
        };
    }
    if let Some(name) = &tls.tls_server_name {
        builder = builder.server_name(name);
    }
    builder.build().map_err(|error| match error {
        error @ TlsSetupError::File { .. } => Failure::other(error.to_string()),
        TlsSetupError::NoRoots { .. } => Failure::other(format!("{error}; give one with --tls-ca")),
        TlsSetupError::ServerName { .. } => {
            Failure::new(Exit::Usage, format!("--tls-server-name: {error}"))
        }
        error => Failure::new(
            Exit::Usage,
            format!("{error}; check --tls-ca, --tls-cert and --tls-key, which take PEM files"),
        ),
    })
}

/// The certificate that `amps serve` shows, if it listens where one is needed.
///
/// # Errors
/// As [`connector`], and when there is none.
pub(crate) fn identity(args: &Serve, stop: &Stop) -> Result<Option<TlsIdentity>, Failure> {
    let secured = parse(&args.listen)?
        .iter()
        .any(|uri| uri.scheme() == Scheme::Tcps);
    match (&args.tls_cert, &args.tls_key, secured) {
        (Some(chain), Some(key), true) => {
            let authority = args.tls_client_ca.as_deref();
            let authority = authority.map(|file| read(file, stop)).transpose()?;
            let (chain, key) = both(chain, key, stop)?;
            let identity = TlsIdentity::from_pem(&chain, &key, authority.as_deref());
            identity.map(Some).map_err(|error| {
                Failure::new(
                    Exit::Usage,
                    format!(
                        "no certificate to show: {error}; check --tls-cert, --tls-key and \
                         --tls-client-ca, which take PEM files"
                    ),
                )
            })
        }
        (None, None, false) => Ok(None),
        (_, _, true) => Err(Failure::new(
            Exit::Usage,
            "to listen on tcps:// takes a certificate; give --tls-cert and --tls-key",
        )),
        (_, _, false) => Err(Failure::new(
            Exit::Usage,
            "--tls-cert is for TLS, and no --listen is a tcps:// one",
        )),
    }
}

fn parse(uris: &[String]) -> Result<Vec<Uri>, Failure> {
    let parse = |uri: &String| {
        uri.parse().map_err(|e| {
            let text = format!("bad server URI: {e}; write one like {DEFAULT_SERVER}");
            Failure::new(Exit::Usage, text)
        })
    };
    uris.iter().map(parse).collect()
}

/// Whether it can be read again for each attempt, and so may be renewed; a pipe is read once.
fn is_file(path: &Path) -> bool {
    std::fs::metadata(path).map_or(true, |found| found.is_file())
}

/// Chain and key, which may be in the same file; a pipe is not opened twice.
fn both(chain: &Path, key: &Path, stop: &Stop) -> Result<(Vec<u8>, Vec<u8>), Failure> {
    let read_chain = read(chain, stop)?;
    let read_key = match chain == key {
        true => read_chain.clone(),
        false => read(key, stop)?,
    };
    Ok((read_chain, read_key))
}

/// What is in a file.
///
/// # Errors
/// It cannot be read.
pub(crate) fn read(file: &Path, stop: &Stop) -> Result<Vec<u8>, Failure> {
    let mut text = Vec::new();
    let mut from = Source::open(file)?.until(stop.clone());
    from.read_to_end(&mut text)
        .map_err(|e| Failure::other(format!("cannot read {}: {e}", file.display())))?;
    Ok(text)
}
