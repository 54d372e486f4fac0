//! `ocore mail-catcher`: the mailboxes of this server's environments, with this installation's settings.

use std::time::Duration;

use anyhow::{Context, Result};
use ocore_machine::ports::Ports;
use ocore_mail::{Limits, MailConfig};

use crate::{config::Config, shutdown};

pub fn run(config: &Config) -> Result<()> {
    let directory = config.mail_directory();
    std::fs::create_dir_all(&directory).with_context(|| format!("cannot make {}", directory.display()))?;
    let mut mail = MailConfig::new(directory.join("boxes"), directory.join("admin.sock"), Ports::kept_at(config.port_socket()));
    mail.limits = Limits {
        message_bytes: config.mail.message_bytes,
        messages: config.mail.messages,
        mailbox_bytes: config.mail.mailbox_bytes,
        age: Duration::from_hours(config.mail.days * 24),
        free_bytes: config.mail.free_bytes,
    };
    ocore_mail::runtime()?.block_on(async {
        let shutdown = shutdown::on_signal()?;
        ocore_mail::run(mail, shutdown).await.context("the mail catcher ended")
    })
}
