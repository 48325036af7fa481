//! PEM files as people have them. If a file holds nothing usable, the error says what it is
//! instead, if it is one of the usual mistakes: encrypted, DER, the other one of the two files,
//! or saved with a byte order mark, which hides the line behind it.

use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::TlsSetupError;

/// The certificates in a PEM text, one or more.
///
/// # Errors
/// [`TlsSetupError::Pem`], with what the text is instead.
pub fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsSetupError> {
    let bad = |reason: &str| TlsSetupError::Pem {
        what: "certificate",
        reason: reason.to_owned(),
    };
    if let Some(marked) = byte_order_mark(pem) {
        return Err(bad(marked));
    }
    let found = CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>();
    let found = found.map_err(|error| bad(&error.to_string()))?;
    if !found.is_empty() {
        return Ok(found);
    }
    Err(bad(match () {
        () if is_der(pem) => {
            "it is DER; make PEM of it: openssl x509 -inform der -in FILE -out FILE.pem"
        }
        () if has(pem, "PRIVATE KEY-----") => {
            "it holds a private key and no certificate; are the two files exchanged?"
        }
        () => "there is none",
    }))
}

/// The first private key in a PEM text.
///
/// # Errors
/// As [`certificates`].
pub fn private_key(pem: &[u8]) -> Result<PrivateKeyDer<'static>, TlsSetupError> {
    let bad = |reason: &str| TlsSetupError::Pem {
        what: "private key",
        reason: reason.to_owned(),
    };
    if let Some(marked) = byte_order_mark(pem) {
        return Err(bad(marked));
    }
    // In its traditional form an encrypted key would be read like any other, and look broken.
    let traditional = has(pem, "Proc-Type: 4,ENCRYPTED");
    let found = match traditional {
        true => None,
        false => match PrivateKeyDer::from_pem_slice(pem) {
            Ok(key) => return Ok(key),
            Err(error) => Some(error),
        },
    };
    Err(bad(match found {
        None => ENCRYPTED,
        Some(_) if has(pem, "-----BEGIN ENCRYPTED PRIVATE KEY-----") => ENCRYPTED,
        Some(_) if is_der(pem) => {
            "it is DER; make PEM of it: openssl pkey -inform der -in FILE -out FILE.pem"
        }
        Some(_) if has(pem, "PRIVATE KEY-----") => "it cannot be read",
        Some(_) if has(pem, "-----BEGIN CERTIFICATE-----") => {
            "it holds a certificate and no private key; are the two files exchanged?"
        }
        Some(_) => "there is none",
    }))
}

const ENCRYPTED: &str = "it is encrypted, and nobody is asked for its passphrase here; decrypt it \
                         into a file for its owner alone: openssl pkey -in FILE -out FILE.plain";

/// Also in front of a part of the text: several files may have been concatenated.
fn byte_order_mark(pem: &[u8]) -> Option<&'static str> {
    let utf16 = pem.starts_with(b"\xff\xfe") || pem.starts_with(b"\xfe\xff");
    if utf16 {
        return Some("it is UTF-16 text; save it as UTF-8 without a byte order mark");
    }
    let marked = pem.starts_with(b"\xef\xbb\xbf") || find(pem, b"\xef\xbb\xbf-----BEGIN");
    marked.then_some(
        "it has a byte order mark (EF BB BF), which hides the line behind it; save it as UTF-8 \
         without one",
    )
}

/// Every certificate and every key in DER begins like this, and no text does.
fn is_der(bytes: &[u8]) -> bool {
    bytes.starts_with(&[0x30, 0x82]) || bytes.starts_with(&[0x30, 0x81])
}

fn has(pem: &[u8], text: &str) -> bool {
    find(pem, text.as_bytes())
}

fn find(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CERTIFICATE: &str = "-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n";

    fn said<T>(result: Result<T, TlsSetupError>) -> String {
        match result {
            Err(error @ TlsSetupError::Pem { .. }) => error.to_string(),
            Err(other) => panic!("{other}"),
            Ok(_) => panic!("taken"),
        }
    }

    #[test]
    fn a_key_that_is_none_says_what_it_is() {
        let cases: [(&[u8], &str); 8] = [
            (
                b"-----BEGIN ENCRYPTED PRIVATE KEY-----\nMAA=\n-----END ENCRYPTED PRIVATE KEY-----\n",
                "openssl pkey -in",
            ),
            (
                b"-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-256-CBC,00\n\nMAA=\n-----END RSA PRIVATE KEY-----\n",
                "it is encrypted",
            ),
            (
                b"\xef\xbb\xbf-----BEGIN PRIVATE KEY-----\nMAA=\n-----END PRIVATE KEY-----\n",
                "byte order mark",
            ),
            (b"\xff\xfe-\0-\0-\0-\0-\0B\0", "UTF-16"),
            (b"\x30\x82\x01\x02\x03", "it is DER"),
            (CERTIFICATE.as_bytes(), "exchanged"),
            (b"-----BEGIN PRIVATE KEY-----\n!\n-----END PRIVATE KEY-----\n", "cannot be read"),
            (b"", "there is none"),
        ];
        for (pem, words) in cases {
            let said = said(private_key(pem));
            assert!(said.contains(words), "{said}");
        }
        let plain = b"-----BEGIN PRIVATE KEY-----\nMAA=\n-----END PRIVATE KEY-----\n";
        assert!(private_key(plain).is_ok());
    }

    /// A mark in front of the first certificate hid it, and the second one was taken for the
    /// server's own.
    #[test]
    fn certificates_that_are_none_say_what_they_are() {
        let marked = format!("\u{feff}{CERTIFICATE}{CERTIFICATE}");
        let second = format!("{CERTIFICATE}\u{feff}{CERTIFICATE}");
        let cases: [(&[u8], &str); 6] = [
            (marked.as_bytes(), "byte order mark"),
            (second.as_bytes(), "byte order mark"),
            (b"\xfe\xff\0-\0-", "UTF-16"),
            (b"\x30\x82\x01\x02\x03", "it is DER"),
            (
                b"-----BEGIN PRIVATE KEY-----\nMAA=\n-----END PRIVATE KEY-----\n",
                "exchanged",
            ),
            (b"hello", "there is none"),
        ];
        for (pem, words) in cases {
            let said = said(certificates(pem));
            assert!(said.contains(words), "{said}");
        }
        assert_eq!(certificates(CERTIFICATE.as_bytes()).unwrap().len(), 1);
    }
}
