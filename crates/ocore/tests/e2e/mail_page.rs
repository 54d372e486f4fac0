//! The page of an environment's mail, in a real browser.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use ocore_testkit::wait::eventually;
use serde_json::json;

use crate::{
    admin::Admin,
    browser::Browser,
    mail::{Mailbox, NEWSLETTER, send},
    outside::Outside,
    scene::Scene,
};

/// The page in Chromium, logged in with its cookie, wide and narrow.
pub(crate) async fn a_browser_shows_it(scene: &Scene, odoo: &Admin<'_>, mailbox: &Mailbox<'_>) -> Result<()> {
    let Some(mut browser) = Browser::start().await? else { return Ok(()) };
    let tracker = Outside::open().await?;
    let body =
        format!("<p style='font-size:20px'>Hello <b>Ada</b></p><img src='http://{}/pixel.gif' width='20' height='20'>", tracker.address);
    send(odoo, json!({ "subject": "With a tracker", "email_from": "shop@example.com", "email_to": "ada@example.com", "body_html": body }))
        .await?;
    mailbox.opened("subject:tracker").await?;
    let url = scene.installation.api_url();
    browser.go(&format!("{url}/healthz")).await?;
    let login = r#"fetch("/api/auth/login", { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify({ email: "ada@example.com", password: "correct horse 1" }) }).then((answer) => answer.status)"#;
    ensure!(browser.evaluate(login).await? == 200);
    browser.go(&format!("{url}/api{}", mailbox.base)).await?;
    let row =
        |subject: &str| format!("[...document.querySelectorAll('#messages button')].find((row) => row.textContent.includes('{subject}'))");
    browser.until(&format!("{} && document.getElementById('live').className === 'on'", row(NEWSLETTER))).await?;
    browser.until(&row("Quotation")).await?;
    browser.until(&row("A reminder")).await?;
    browser.picture("mail-list", 1280, 800).await?;

    // An HTML message: shown, its script dead, its tracker not asked.
    browser.evaluate(&format!("{}.click()", row("With a tracker"))).await?;
    browser.until("document.querySelector('#body iframe')").await?;
    let frame = browser.evaluate("fetch(document.querySelector('#body iframe').src).then((answer) => answer.text())").await?;
    ensure!(frame.as_str().is_some_and(|page| page.contains("<b>Ada</b>") && !page.contains("pixel.gif")), "{frame}");
    browser.picture("mail-html", 1280, 800).await?;
    ensure!(tracker.connections() == 0, "the page has asked the tracker");
    browser
        .evaluate("[...document.querySelectorAll('button')].find((button) => button.textContent.includes('remote images')).click()")
        .await?;
    let asked = eventually(Duration::from_secs(20), async || (tracker.connections() > 0).then_some(())).await;
    asked.context("remote images were asked for and did not come")?;

    // Source, attachment, search, a mail that comes while one looks, a phone.
    browser.evaluate(&format!("{}.click()", row(NEWSLETTER))).await?;
    browser.until("document.querySelector('#message h2') && document.querySelector('#message h2').textContent === 'A newsletter' && document.querySelector('#message a[download=\"price list.pdf\"]')").await?;
    let file = browser
        .evaluate("fetch(document.querySelector('#message a[download=\"price list.pdf\"]').href).then((answer) => answer.text())")
        .await?;
    ensure!(file == "%PDF-1.4 prices", "{file}");
    browser.evaluate("[...document.querySelectorAll('[role=tab]')].find((tab) => tab.textContent === 'Source').click()").await?;
    browser.until("(document.querySelector('#body pre') || {}).textContent?.includes('Subject: A newsletter')").await?;
    browser.picture("mail-source", 1280, 800).await?;
    ensure!(browser.evaluate("document.title").await? != "evil");
    browser
        .evaluate(
            "const query = document.getElementById('query'); query.value = 'subject:password'; query.dispatchEvent(new Event('input'))",
        )
        .await?;
    browser.until("document.querySelectorAll('#messages button').length > 0 && [...document.querySelectorAll('#messages .subject')].every((subject) => /password/i.test(subject.textContent))").await?;
    browser.evaluate("query.value = ''; query.dispatchEvent(new Event('input'))").await?;
    send(
        odoo,
        json!({ "subject": "While you look", "email_from": "shop@example.com", "email_to": "ada@example.com", "body_html": "<p>Now</p>" }),
    )
    .await?;
    browser.until(&row("While you look")).await?;
    browser.evaluate("location.hash = ''").await?;
    browser.picture("mail-phone-list", 390, 844).await?;
    ensure!(browser.evaluate("document.documentElement.scrollWidth <= innerWidth").await? == true, "the page is wider than a phone");
    browser.evaluate(&format!("{}.click()", row("With a tracker"))).await?;
    browser.until("document.querySelector('#body iframe') && getComputedStyle(document.getElementById('list')).display === 'none'").await?;
    browser.picture("mail-phone-message", 390, 844).await?;
    ensure!(browser.evaluate("document.documentElement.scrollWidth <= innerWidth").await? == true, "a message is wider than a phone");
    browser.evaluate("document.getElementById('back').click()").await?;
    browser.until("getComputedStyle(document.getElementById('list')).display !== 'none'").await
}
