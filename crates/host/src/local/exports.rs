use ocore_model::ids::ExportId;

use super::{LocalHost, fence::Claim};
use crate::{
    api::{ByteStream, ExportedFile, Progress, WriteExport},
    error::{HostError, Result},
};

impl LocalHost {
    pub(super) async fn export(&self, _: &Claim, _: &WriteExport, _: &Progress) -> Result<ExportedFile> {
        Err(HostError::machine("not built yet"))
    }

    pub(super) async fn open_export(&self, _: ExportId, _: u64) -> Result<ByteStream> {
        Err(HostError::machine("not built yet"))
    }
}
