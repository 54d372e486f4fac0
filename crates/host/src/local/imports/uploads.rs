//! Receives the parts of an import, each appended to where it was broken off.
//!
//! A part's offset is written down after the bytes before it are on the disk for good, and what lies behind it is cut off before more is
//! appended. So whoever asks for the offset, after whatever crash, may go on there.

use std::{
    collections::HashMap,
    fs::OpenOptions,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use ocore_model::ids::ImportId;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncSeekExt, AsyncWriteExt};
use tokio_util::sync::CancellationToken;

use crate::{
    api::{ByteStream, NewUpload, UploadPart, UploadedPart},
    error::{HostError, Result},
    local::{
        LocalHost, copy,
        durable::{self, blocking},
    },
};

/// After that many bytes the offset is written down, so that a crash costs no more than this.
const STRIDE: u64 = 8 * 1024 * 1024;
const BUFFER: usize = 256 * 1024;

/// Who appends to which part now.
#[derive(Default)]
pub(in crate::local) struct Uploading(Mutex<HashMap<(ImportId, UploadPart), Turn>>);

#[derive(Default)]
struct Turn {
    one_at_a_time: Arc<tokio::sync::Mutex<()>>,
    /// Ends whoever appends now.
    end: CancellationToken,
}

impl Uploading {
    /// Ends whoever appends to the part and waits until it has stopped.
    async fn take_over(&self, import: ImportId, part: UploadPart) -> (tokio::sync::OwnedMutexGuard<()>, CancellationToken) {
        let (turn, end) = {
            let mut turns = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            turns.retain(|_, turn| Arc::strong_count(&turn.one_at_a_time) > 1);
            let turn = turns.entry((import, part)).or_default();
            turn.end.cancel();
            turn.end = CancellationToken::new();
            (Arc::clone(&turn.one_at_a_time), turn.end.clone())
        };
        (turn.lock_owned().await, end)
    }
}

/// What is written down of a part.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    size: u64,
    sha256: Option<String>,
    received: u64,
}

impl Record {
    fn part(&self, part: UploadPart) -> UploadedPart {
        UploadedPart { part, size: self.size, received: self.received, sha256: self.sha256.clone() }
    }
}

const PARTS: [UploadPart; 2] = [UploadPart::Backup, UploadPart::FileStore];

fn name(part: UploadPart) -> &'static str {
    match part {
        UploadPart::Backup => "backup",
        UploadPart::FileStore => "file_store",
    }
}

/// The bytes of a part in the import's directory.
pub(super) fn file_of(directory: &Path, part: UploadPart) -> PathBuf {
    directory.join(name(part))
}

fn record_of(directory: &Path, part: UploadPart) -> PathBuf {
    directory.join(format!("{}.json", name(part)))
}

impl LocalHost {
    pub(in crate::local) async fn begin_upload(&self, upload: &NewUpload) -> Result<UploadedPart> {
        let directory = self.layout.upload(upload.import);
        let record_path = record_of(&directory, upload.part);
        if let Some(record) = durable::read_json::<Record>(&record_path)? {
            if (record.size, &record.sha256) != (upload.size, &upload.sha256) {
                return Err(HostError::rejected(format!(
                    "this part was begun with {} bytes and now has {}; begin another import",
                    record.size, upload.size
                )));
            }
            return Ok(record.part(upload.part));
        }
        if upload.size == 0 {
            return Err(HostError::rejected("the file is empty"));
        }
        self.pool.require(upload.size, "this upload").await?;
        let record = Record { size: upload.size, sha256: upload.sha256.clone(), received: 0 };
        let (uploads, stored, file) = (self.layout.uploads(), record.clone(), file_of(&directory, upload.part));
        blocking(move || {
            durable::make_directory(&uploads, 0o711)?;
            durable::make_directory(&directory, 0o711)?;
            OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o600)
                .open(&file)
                .map_err(|error| cannot_write(&file, error))?;
            durable::write_json(&record_path, &stored)
        })
        .await?;
        Ok(record.part(upload.part))
    }

    pub(in crate::local) async fn receive(
        &self,
        import: ImportId,
        part: UploadPart,
        offset: u64,
        mut body: ByteStream,
    ) -> Result<UploadedPart> {
        let (_turn, end) = self.uploading.take_over(import, part).await;
        let directory = self.layout.upload(import);
        let record_path = record_of(&directory, part);
        let mut record: Record =
            durable::read_json(&record_path)?.ok_or_else(|| HostError::NotFound { what: "upload", id: import.to_string() })?;
        if offset != record.received {
            return Ok(record.part(part));
        }
        self.pool.require(record.size - record.received, "the rest of this upload").await?;
        let path = file_of(&directory, part);
        let failed = |error| cannot_write(&path, error);
        let mut file = tokio::fs::OpenOptions::new().write(true).open(&path).await.map_err(failed)?;
        file.set_len(record.received).await.map_err(failed)?;
        file.seek(std::io::SeekFrom::Start(record.received)).await.map_err(failed)?;
        let mut buffer = vec![0; BUFFER];
        let mut arrived = record.received;
        let outcome = loop {
            let read = tokio::select! {
                () = end.cancelled() => break Ok(()),
                read = body.read(&mut buffer) => read,
            };
            let count = match read {
                Ok(0) => break Ok(()),
                Ok(count) => count,
                Err(error) => {
                    tracing::info!(%import, %error, "an upload was broken off");
                    break Ok(());
                }
            };
            if arrived + count as u64 > record.size {
                break Err(HostError::rejected(format!("the file is larger than the {} bytes that were announced", record.size)));
            }
            if let Err(error) = file.write_all(&buffer[..count]).await {
                break Err(cannot_write(&path, error));
            }
            arrived += count as u64;
            if arrived - record.received >= STRIDE {
                write_down(&mut file, &mut record, arrived, &path, &record_path).await?;
            }
        };
        write_down(&mut file, &mut record, arrived, &path, &record_path).await?;
        outcome.map(|()| record.part(part))
    }

    pub(in crate::local) async fn uploaded_parts(&self, import: ImportId) -> Result<Vec<UploadedPart>> {
        let directory = self.layout.upload(import);
        blocking(move || {
            let parts =
                PARTS.iter().map(|part| Ok(durable::read_json::<Record>(&record_of(&directory, *part))?.map(|record| record.part(*part))));
            parts.filter_map(Result::transpose).collect()
        })
        .await
    }

    pub(in crate::local) async fn drop_upload(&self, import: ImportId) -> Result<()> {
        for part in PARTS {
            self.uploading.take_over(import, part).await;
        }
        copy::remove(&self.layout.upload(import)).await
    }
}

async fn write_down(file: &mut tokio::fs::File, record: &mut Record, arrived: u64, path: &Path, record_path: &Path) -> Result<()> {
    if arrived == record.received {
        return Ok(());
    }
    let failed = |error| cannot_write(path, error);
    file.flush().await.map_err(failed)?;
    file.sync_data().await.map_err(failed)?;
    record.received = arrived;
    let (stored, record_path) = (record.clone(), record_path.to_owned());
    blocking(move || durable::write_json(&record_path, &stored)).await
}

fn cannot_write(path: &Path, error: std::io::Error) -> HostError {
    HostError::machine_from(format!("{} could not be written: {error}", path.display()), error)
}
