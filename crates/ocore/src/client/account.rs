//! `ocore signup`, `login`, `logout`, `whoami`, `account`.

use std::{
    io::{BufRead, IsTerminal},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use clap::{Args, Subcommand};
use serde_json::json;

use super::{ClientOptions, failure::Failure, http::Api, output::Output};

#[derive(Debug, Args)]
pub struct Signup {
    #[arg(long)]
    email: String,
    /// Your name
    #[arg(long)]
    name: String,
    /// Reads the password from standard input instead of asking
    #[arg(long)]
    password_stdin: bool,
    /// Also makes an organization of this name
    #[arg(long)]
    organization: Option<String>,
    /// For the first account of an installation: the token that `ocore serve` prints at its start
    #[arg(long, env = "OCORE_FIRST_ACCOUNT_TOKEN", hide_env_values = true)]
    token: Option<String>,
    /// The file with that token, on the server: first-account-token in oCore's home
    #[arg(long, conflicts_with = "token")]
    token_file: Option<PathBuf>,
    /// The token of an invitation for your e-mail address
    #[arg(long, conflicts_with_all = ["token", "token_file"])]
    invitation: Option<String>,
}

#[derive(Debug, Args)]
pub struct Login {
    #[arg(long)]
    email: Option<String>,
    /// Reads the password from standard input instead of asking
    #[arg(long)]
    password_stdin: bool,
}

impl Signup {
    pub async fn run(self, options: &ClientOptions, output: Output) -> Result<()> {
        let api = Api::new(&ClientOptions { api_key: None, ..options.clone() })?;
        let token = match &self.token_file {
            Some(path) => Some(read_token(path)?),
            None => self.token,
        };
        let password = read_password(self.password_stdin)?;
        let mut body = json!({ "email": self.email, "name": self.name, "password": password });
        if let Some(token) = token {
            body["firstAccountToken"] = token.into();
        }
        if let Some(invitation) = self.invitation {
            body["invitation"] = invitation.into();
        }
        api.post("/auth/signup", body).await?;
        let answer = api.post("/auth/login", json!({ "email": self.email, "password": password })).await?;
        api.remember(&answer)?;
        if let Some(name) = self.organization {
            let organization = api.post("/user/orgs", json!({ "name": name })).await?;
            let slug = organization["slug"].as_str().map(str::to_owned);
            api.update_profile(|profile| profile.organization = slug)?;
        }
        output.done(&answer["user"], &format!("Welcome, {}. You are logged in at {}.", self.name, api.url));
        Ok(())
    }
}

impl Login {
    pub async fn run(self, options: &ClientOptions, output: Output) -> Result<()> {
        if let Some(key) = &options.api_key {
            let api = Api::new(options)?;
            let organization = api.get("/org").await?;
            let url = api.url.clone();
            let slug = organization["slug"].as_str().map(str::to_owned);
            api.update_profile(|profile| {
                profile.url = Some(url);
                profile.api_key = Some(key.clone());
                profile.organization = slug;
                profile.access_token = None;
                profile.refresh_token = None;
            })?;
            output.done(&organization, &format!("The API key works; it is remembered for {}.", api.url));
            return Ok(());
        }
        let email = match self.email {
            Some(email) => email,
            None => prompt("E-mail: ")?,
        };
        let api = Api::new(options)?;
        let password = read_password(self.password_stdin)?;
        let answer = api.post("/auth/login", json!({ "email": email, "password": password })).await?;
        api.remember(&answer)?;
        let organization = options.org.clone();
        api.update_profile(|profile| {
            profile.api_key = None;
            if organization.is_some() {
                profile.organization = organization;
            }
        })?;
        output.done(&answer["user"], &format!("Logged in at {}.", api.url));
        Ok(())
    }
}

pub async fn logout(options: &ClientOptions, output: Output) -> Result<()> {
    let api = Api::new(options)?;
    if let Some(refresh_token) = api.refresh_token() {
        // An expired session is as good as an ended one.
        match api.post("/auth/logout", json!({ "refreshToken": refresh_token })).await {
            Ok(_) => {}
            Err(error) if matches!(error.downcast_ref(), Some(Failure::Problem(problem)) if problem.status == 401) => {}
            Err(error) => return Err(error),
        }
    }
    api.update_profile(|profile| {
        profile.access_token = None;
        profile.refresh_token = None;
        profile.api_key = None;
    })?;
    output.done(&json!({ "message": "logged out" }), "Logged out.");
    Ok(())
}

#[derive(Debug, Subcommand)]
pub enum AccountCommand {
    /// Delete it, with its sessions, API keys and memberships
    Delete {
        /// Reads the password from standard input instead of asking
        #[arg(long)]
        password_stdin: bool,
    },
}

impl AccountCommand {
    pub async fn run(self, options: &ClientOptions, output: Output) -> Result<()> {
        let Self::Delete { password_stdin } = self;
        let api = Api::logged_in(options)?;
        let answer = api.post("/user/delete", json!({ "password": read_password(password_stdin)? })).await?;
        api.update_profile(|profile| {
            profile.access_token = None;
            profile.refresh_token = None;
        })?;
        output.done(&answer, "Your account is deleted.");
        Ok(())
    }
}

pub async fn whoami(options: &ClientOptions, output: Output) -> Result<()> {
    let api = Api::logged_in(options)?;
    let user = api.get("/user").await?;
    output.show(&user, &[("Name", "/name"), ("E-mail", "/email"), ("User", "/id")]);
    if !output.json {
        note!("at {}", api.url);
    }
    Ok(())
}

fn read_token(path: &Path) -> Result<String> {
    let text = std::fs::read_to_string(path).with_context(|| {
        format!("cannot read the token of the first account in {}; it is there for root, until that account is made", path.display())
    })?;
    Ok(text.trim().to_owned())
}

fn prompt(question: &str) -> Result<String> {
    if !std::io::stdin().is_terminal() {
        return Err(Failure::Usage("there is no terminal to ask at; give --email".to_owned()).into());
    }
    crate::terminal::beside(format_args!("{question}"));
    read_line()
}

fn read_line() -> Result<String> {
    let mut line = String::new();
    std::io::stdin().lock().read_line(&mut line).context("cannot read standard input")?;
    Ok(line.trim_end_matches(['\r', '\n']).to_owned())
}

fn read_password(from_stdin: bool) -> Result<String> {
    if from_stdin || !std::io::stdin().is_terminal() {
        return read_line();
    }
    dialoguer::Password::new().with_prompt("Password").interact().context("cannot read the password")
}
