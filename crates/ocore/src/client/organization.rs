//! `ocore org`.

use anyhow::Result;
use clap::Subcommand;
use serde_json::json;

use super::{
    ClientOptions,
    http::Api,
    output::{self, Output},
};

#[derive(Debug, Subcommand)]
pub enum OrganizationCommand {
    /// The organizations that you belong to
    List,
    /// The organization in use
    Show,
    /// Make an organization and use it
    Create {
        name: String,
        #[arg(long)]
        slug: Option<String>,
    },
    /// Use another organization from now on
    Use { slug: String },
    /// The members of the organization in use
    Members,
    /// Invite somebody; prints the link to hand over
    Invite {
        email: String,
        /// Owner, Admin, Developer, Viewer or one of your own
        #[arg(long, default_value = "Developer")]
        role: String,
    },
    /// Remove the organization in use with its projects and all their data; the last snapshots of its productions stay for 30 days
    Delete {
        /// Its slug, instead of asking for it
        #[arg(long, value_name = "SLUG")]
        confirm: Option<String>,
    },
    /// Bring back the organization in use, which is being removed
    Restore,
}

impl OrganizationCommand {
    pub async fn run(self, options: &ClientOptions, output: Output) -> Result<()> {
        let api = Api::logged_in(options)?;
        match self {
            Self::List => {
                let answer = api.get("/user/orgs").await?;
                let rows = answer["organizations"].as_array().cloned().unwrap_or_default();
                output.list(
                    &answer,
                    &rows,
                    &[("slug", "/slug"), ("name", "/name"), ("role", "/role")],
                    "You belong to no organization yet.",
                );
            }
            Self::Show => {
                output.show(&api.get("/org").await?, &[("Name", "/name"), ("Slug", "/slug"), ("Id", "/id"), ("Since", "/createdAt")]);
            }
            Self::Create { name, slug } => {
                let organization = api.post("/user/orgs", json!({ "name": name, "slug": slug })).await?;
                let slug = organization["slug"].as_str().map(str::to_owned);
                api.update_profile(|profile| profile.organization = slug)?;
                output.done(&organization, &format!("{name} is there and in use."));
            }
            Self::Use { slug } => {
                let organization = Api::logged_in(&ClientOptions { org: Some(slug.clone()), ..options.clone() })?.get("/org").await?;
                api.update_profile(|profile| profile.organization = Some(slug))?;
                output.done(&organization, &format!("Using {}.", organization["name"].as_str().unwrap_or_default()));
            }
            Self::Members => {
                let answer = api.get("/members").await?;
                let rows = answer["members"].as_array().cloned().unwrap_or_default();
                output.list(
                    &answer,
                    &rows,
                    &[("name", "/name"), ("e-mail", "/email"), ("role", "/role/name"), ("since", "/createdAt")],
                    "Nobody.",
                );
            }
            Self::Delete { confirm } => {
                let organization = api.get("/org").await?;
                let question =
                    format!("Remove {} with its projects and all their data?", organization["name"].as_str().unwrap_or_default());
                let typed = output::typed(confirm, &question, organization["slug"].as_str().unwrap_or_default())?;
                let answer = api.delete(&format!("/org?confirm={typed}")).await?;
                output.done(&answer, answer["message"].as_str().unwrap_or("It is being removed."));
            }
            Self::Restore => {
                let organization = api.put("/org", json!({ "removed": false })).await?;
                output.done(&organization, "The organization is back; bring back its projects with `ocore project restore`.");
            }
            Self::Invite { email, role } => {
                let roles = api.get("/roles").await?;
                let found =
                    roles["roles"].as_array().and_then(|roles| roles.iter().find(|candidate| candidate["name"].as_str() == Some(&role)));
                let Some(found) = found else {
                    return Err(super::failure::Failure::Selection(format!("there is no role `{role}`")).into());
                };
                let invitation = api.post("/members/invite", json!({ "email": email, "roleId": found["id"] })).await?;
                output.show(&invitation, &[("Invited", "/email"), ("Link", "/url"), ("Until", "/expiresAt")]);
            }
        }
        Ok(())
    }
}
