//! What `tcps` addresses take besides the address: files of certificates, and a name.

use std::path::Path;
use std::sync::Arc;

use amps_client::connector::{Connector, SchemeConnector, TlsConnector, TlsSetupError};
use amps_client::uri::{Scheme, Uri};
use amps_sandbox::TlsIdentity;

use crate::args::{DEFAULT_SERVER, Serve, Tls};
use crate::failure::{Exit, Failure};

/// How to connect to these servers, before anything is created or opened.
///
/// # Errors
/// A URI that is none, a file that cannot be read or does not hold what it should, or
/// options that no server needs.
pub(crate) fn connector(servers: &[String], tls: &Tls) -> Result<Arc<dyn Connector>, Failure> {
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
    let mut builder = TlsConnector::builder();
    if let Some(file) = &tls.tls_ca {
        builder = builder.without_system_roots().authority_pem(read(file)?);
    }
    if let (Some(chain), Some(key)) = (&tls.tls_cert, &tls.tls_key) {
        builder = builder.client_certificate_pem(read(chain)?, read(key)?);
    }
    if let Some(name) = &tls.tls_server_name {
        builder = builder.server_name(name);
    }
    let tls = builder.build().map_err(|error| match error {
        TlsSetupError::NoRoots { .. } => Failure::other(format!("{error}; give one with --tls-ca")),
        TlsSetupError::ServerName { .. } => {
            Failure::new(Exit::Usage, format!("--tls-server-name: {error}"))
        }
        error => Failure::new(
            Exit::Usage,
            format!("{error}; check --tls-ca, --tls-cert and --tls-key, which take PEM files"),
        ),
    })?;
    Ok(Arc::new(SchemeConnector::new().with_tls(tls)))
}

/// The certificate that `amps serve` shows, if it listens where one is needed.
///
/// # Errors
/// As [`connector`], and when there is none.
pub(crate) fn identity(args: &Serve) -> Result<Option<TlsIdentity>, Failure> {
    let secured = parse(&args.listen)?
        .iter()
        .any(|uri| uri.scheme() == Scheme::Tcps);
    match (&args.tls_cert, &args.tls_key, secured) {
        (Some(chain), Some(key), true) => {
            let authority = args.tls_client_ca.as_deref().map(read).transpose()?;
            let identity = TlsIdentity::from_pem(&read(chain)?, &read(key)?, authority.as_deref());
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

fn read(file: &Path) -> Result<Vec<u8>, Failure> {
    std::fs::read(file).map_err(|e| Failure::other(format!("cannot read {}: {e}", file.display())))
}
