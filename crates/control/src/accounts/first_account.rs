//! The first account of an installation. Nobody is there yet who could invite its user, so it takes a token that only whoever runs the server can
//! read: `ocore serve` prints it at its start and keeps it in a file of root's. It is good as long as there is no user, and for one.
//!
//! The token is no state of its own: it comes from the installation's secret and a nonce in the store, which goes in the transaction that makes the
//! first user. So every start of every replica says the same one, and a process that is killed anywhere leaves at most a file with a dead token.

use std::{
    fs::{self, File},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use sqlx::PgConnection;

use crate::{
    Control, Error, Result,
    authorization::System,
    secrets::{self, Purpose},
    store,
};

const PREFIX: &str = "first_";

/// Brings the file in line with the store: it holds the token as long as there is no user, and is not there afterwards. Gives the token. May run
/// twice, and beside a sign-up.
pub async fn keep_first_account_file(_system: System, control: &Control) -> Result<Option<String>> {
    let mut transaction = control.pool.begin().await?;
    store::accounts::lock_sign_up(&mut transaction).await?;
    let path = &control.settings.first_account_file;
    let token = if store::accounts::any_user(&mut transaction).await? {
        store::accounts::forget_first_account(&mut transaction).await?;
        None
    } else {
        let nonce = store::accounts::first_account_nonce(&mut transaction).await?;
        Some(secrets::derived_token(&control.settings, Purpose::FirstAccount, nonce, PREFIX)?)
    };
    // Before the lock goes: a sign-up that comes now finds the file that it removes.
    match &token {
        Some(token) => write(path, token),
        None => remove(path),
    }
    .map_err(|error| Error::internal(format!("keeping {}", path.display()), error))?;
    transaction.commit().await?;
    Ok(token)
}

/// `Forbidden` unless the token is that of the first account; for when there is no user.
pub(super) async fn check(control: &Control, connection: &mut PgConnection, token: Option<&str>) -> Result<()> {
    let Some(token) = token else {
        return Err(Error::forbidden(
            "first_account_token_required",
            "the first account of this installation takes the token that `ocore serve` prints at its start and keeps in the file first-account-token",
        ));
    };
    let nonce = store::accounts::known_first_account_nonce(connection).await?;
    let expected = nonce.map(|nonce| secrets::derived_token(&control.settings, Purpose::FirstAccount, nonce, PREFIX)).transpose()?;
    if expected.is_some_and(|expected| secrets::same_token(token.as_bytes(), expected.as_bytes())) {
        return Ok(());
    }
    Err(Error::forbidden(
        "first_account_token_invalid",
        "this is not the token of the first account; `ocore serve` prints it at its start and keeps it in the file first-account-token",
    ))
}

/// The first user is there: its token is dead, and its file goes. One that cannot be removed now goes at the next look.
pub(super) fn made(control: &Control) {
    if let Err(error) = remove(&control.settings.first_account_file) {
        tracing::warn!(%error, "the file with the used token of the first account could not be removed");
    }
}

/// Whole or not at all, and readable by its owner alone from the first moment on.
fn write(path: &Path, token: &str) -> io::Result<()> {
    if fs::read_to_string(path).is_ok_and(|text| text.trim_end() == token) {
        return Ok(());
    }
    let temporary = path.with_extension("new");
    remove(&temporary)?;
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
    writeln!(file, "{token}")?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    path.parent().map_or(Ok(()), |directory| File::open(directory)?.sync_all())
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
