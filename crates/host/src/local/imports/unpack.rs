//! Unpacks the file store of a backup.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, Read, Write},
    path::{Path, PathBuf},
};

use sha1::{Digest, Sha1};
use tokio_util::sync::CancellationToken;

use super::{
    archive::{self, Kind, Limits},
    member::{Member, Stored, Stores},
    restore::cannot_write,
};
use crate::{
    error::{HostError, Result},
    local::{below::Directory, data_sets::ODOO_ROLE},
};

/// Into a `data_dir` that is root's own. The answer is the paths in the store of files whose content is another one than their names say. They stay:
/// an import changes nothing, and Odoo serves them as the source did.
pub(super) fn unpack(source: &Path, data_dir: &Path, tokens: &[CancellationToken]) -> Result<BTreeSet<String>> {
    let made = Directory::open(data_dir).and_then(|directory| directory.make("filestore", 0o700)?.make(ODOO_ROLE, 0o700));
    let store = made.map_err(|error| cannot_write(data_dir, error))?;
    let mut unpacking = Unpacking { store, shards: BTreeMap::new(), damaged: BTreeSet::new(), tokens, buffer: vec![0; 1 << 17] };
    let mut stores = Stores::default();
    archive::read(source, Kind::of(source)?, Limits::default(), |member, size, reader| match member {
        Member::Stored(file) => {
            stores.note(&file, size)?;
            unpacking.write(&file, reader)
        }
        Member::Again { file, of } => {
            stores.note(&file, size)?;
            let place = PathBuf::from(&of).join(&file.name);
            let absent =
                |_| HostError::rejected(format!("the archive holds a hard link to {}, and no such file before it", place.display()));
            let mut original = unpacking.store.file(&place).map_err(absent)?;
            unpacking.write(&file, &mut original)
        }
        _ => Ok(()),
    })?;
    stores.only()?;
    Ok(unpacking.damaged)
}

struct Unpacking<'a> {
    store: Directory,
    shards: BTreeMap<String, Directory>,
    damaged: BTreeSet<String>,
    tokens: &'a [CancellationToken],
    buffer: Vec<u8>,
}

impl Unpacking<'_> {
    /// The first whole one of those with the same name counts: archives that were added to hold a file twice.
    fn write(&mut self, file: &Stored, reader: &mut dyn Read) -> Result<()> {
        let place = format!("{}/{}", file.shard, file.name);
        let failed = |error| cannot_write(Path::new(&place), error);
        if !self.shards.contains_key(&file.shard) {
            self.shards.insert(file.shard.clone(), self.store.make(&file.shard, 0o700).map_err(failed)?);
        }
        let shard = &self.shards[&file.shard];
        let mut made = match shard.create(&file.name, 0o600) {
            Ok(made) => made,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && !self.damaged.contains(&place) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                shard.remove(&file.name).and_then(|()| shard.create(&file.name, 0o600)).map_err(failed)?
            }
            Err(error) => return Err(failed(error)),
        };
        let mut digest = Sha1::new();
        loop {
            if self.tokens.iter().any(CancellationToken::is_cancelled) {
                return Err(HostError::Cancelled);
            }
            let count = reader.read(&mut self.buffer).map_err(archive::damaged)?;
            if count == 0 {
                break;
            }
            digest.update(&self.buffer[..count]);
            made.write_all(&self.buffer[..count]).map_err(failed)?;
        }
        if hex::encode(digest.finalize()) == file.name {
            self.damaged.remove(&place);
        } else {
            self.damaged.insert(place);
        }
        Ok(())
    }
}
