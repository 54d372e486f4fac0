//! Secrets at rest and the keys that come from the installation's secret.
//!
//! One secret is configured; each use has a key of its own, derived with HKDF-SHA-256 under a label, so that what leaks of one use says
//! nothing about another. A sealed value is bound to its place (table, column, row): copied elsewhere it does not open.

use std::fmt;

use chacha20poly1305::{
    KeyInit, XChaCha20Poly1305, XNonce,
    aead::{Aead, Payload},
};
use hkdf::Hkdf;
use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::{Error, Result, Settings};

/// What the derived keys are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    SealedColumns,
    AccessTokens,
    FirstAccount,
}

impl Purpose {
    fn label(self) -> &'static [u8] {
        match self {
            Self::SealedColumns => b"ocore sealed columns 1",
            Self::AccessTokens => b"ocore access tokens 1",
            Self::FirstAccount => b"ocore first account 1",
        }
    }
}

/// The key for one purpose.
pub(crate) fn derive(settings: &Settings, purpose: Purpose) -> [u8; 32] {
    let mut key = [0; 32];
    Hkdf::<Sha256>::new(None, settings.secret.expose())
        .expand(purpose.label(), &mut key)
        .expect("HKDF gives 32 bytes from SHA-256 whatever the secret is");
    key
}

/// Where a sealed value lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    pub table: &'static str,
    pub column: &'static str,
    pub row: Uuid,
}

impl Place {
    fn associated_data(self) -> Vec<u8> {
        format!("{}/{}/{}", self.table, self.column, self.row).into_bytes()
    }
}

/// A secret in memory. Its `Debug` says nothing.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Vec<u8>);

impl Secret {
    pub fn new(bytes: impl Into<Vec<u8>>) -> Self {
        Self(bytes.into())
    }

    /// The bytes themselves, for the one call that needs them.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }

    /// The secret as text.
    pub fn expose_text(&self) -> Result<&str> {
        std::str::from_utf8(&self.0).map_err(|error| Error::internal("a sealed text is not UTF-8", error))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Secret(…)")
    }
}

const FORMAT: u8 = 1;
const NONCE_BYTES: usize = 24;

/// Seals a secret for its place: format byte, nonce, XChaCha20-Poly1305 text. Two calls give different bytes.
pub fn seal(settings: &Settings, place: Place, secret: &Secret) -> Result<Vec<u8>> {
    let nonce: [u8; NONCE_BYTES] = rand::random();
    let text = cipher(settings)
        .encrypt(&XNonce::from(nonce), Payload { msg: &secret.0, aad: &place.associated_data() })
        .map_err(|_| Error::broken(format!("cannot seal {}.{}", place.table, place.column)))?;
    let mut sealed = Vec::with_capacity(1 + NONCE_BYTES + text.len());
    sealed.push(FORMAT);
    sealed.extend_from_slice(&nonce);
    sealed.extend_from_slice(&text);
    Ok(sealed)
}

/// Opens what [`seal`] made for the same place with the same installation secret.
pub fn open(settings: &Settings, place: Place, sealed: &[u8]) -> Result<Secret> {
    let unreadable = || {
        Error::broken(format!(
            "{}.{} of {} does not open: it was sealed with another installation secret, or changed",
            place.table, place.column, place.row
        ))
    };
    let (&format, rest) = sealed.split_first().ok_or_else(unreadable)?;
    if format != FORMAT {
        return Err(unreadable());
    }
    let (nonce, text) = rest.split_first_chunk::<NONCE_BYTES>().ok_or_else(unreadable)?;
    cipher(settings)
        .decrypt(&XNonce::from(*nonce), Payload { msg: text, aad: &place.associated_data() })
        .map(Secret)
        .map_err(|_| unreadable())
}

fn cipher(settings: &Settings) -> XChaCha20Poly1305 {
    XChaCha20Poly1305::new(&derive(settings, Purpose::SealedColumns).into())
}

/// A new token for a caller: 256 random bits as text after a prefix that says what it is.
pub(crate) fn new_token(prefix: &str) -> String {
    use base64::Engine as _;
    let bytes: [u8; 32] = rand::random();
    format!("{prefix}{}", base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(bytes))
}

/// A token that is the same for whoever has the installation's secret and the nonce, and that nobody else can make.
pub(crate) fn derived_token(settings: &Settings, purpose: Purpose, nonce: Uuid, prefix: &str) -> Result<String> {
    use base64::Engine as _;
    use hmac::{Hmac, Mac};
    let mut hmac = Hmac::<Sha256>::new_from_slice(&derive(settings, purpose)).map_err(|error| Error::internal("a key of HMAC", error))?;
    hmac.update(nonce.as_bytes());
    Ok(format!("{prefix}{}", base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(hmac.finalize().into_bytes())))
}

/// Whether two tokens are the same, without telling by the time it takes where they differ.
pub fn same_token(one: &[u8], other: &[u8]) -> bool {
    use subtle::ConstantTimeEq;
    one.ct_eq(other).into()
}

/// What the store keeps of a token. Tokens are 256 random bits, so a fast hash without salt is enough.
pub(crate) fn token_hash(token: &str) -> Vec<u8> {
    Sha256::digest(token.as_bytes()).to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::context::tests::settings;

    fn place() -> Place {
        Place { table: "projects", column: "deploy_key_private", row: Uuid::nil() }
    }

    #[test]
    fn a_sealed_secret_opens_in_its_place_only() {
        let settings = settings();
        let sealed = seal(&settings, place(), &Secret::new("hunter2")).unwrap();
        assert_eq!(open(&settings, place(), &sealed).unwrap().expose_text().unwrap(), "hunter2");
        assert!(open(&settings, Place { row: Uuid::max(), ..place() }, &sealed).is_err());
        assert!(open(&settings, Place { column: "other", ..place() }, &sealed).is_err());
        let other = Settings { secret: Secret::new(vec![9; 32]), ..settings };
        assert!(open(&other, place(), &sealed).is_err());
    }

    #[test]
    fn a_changed_or_cut_text_does_not_open() {
        let settings = settings();
        let sealed = seal(&settings, place(), &Secret::new("hunter2")).unwrap();
        for index in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[index] ^= 1;
            assert!(open(&settings, place(), &changed).is_err(), "byte {index}");
            assert!(open(&settings, place(), &sealed[..index]).is_err(), "cut at {index}");
        }
    }

    #[test]
    fn debug_does_not_print_a_secret() {
        assert_eq!(format!("{:?}", Secret::new("hunter2")), "Secret(…)");
    }
}
