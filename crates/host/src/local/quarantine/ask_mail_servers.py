# Standard input of `odoo shell`: where would this Odoo send mail? Nothing is sent, and there is no network; whoever asks for a connection is told that
# there is none, and what was asked for is written down.
import json as ocore_json
import smtplib as ocore_smtplib
from email.message import EmailMessage as OcoreMessage

ocore_asked, ocore_said = [], []


class OcoreRefusal(ConnectionRefusedError):
    pass


def ocore_refuse(self, host='', port=0, *arguments, **options):
    ocore_asked.append([str(host), int(port or 0)])
    raise OcoreRefusal('asked by oCore')


ocore_smtplib.SMTP.__init__ = ocore_refuse
ocore_smtplib.SMTP_SSL.__init__ = ocore_refuse
ocore_servers = env['ir.mail_server'].sudo()
# As a mail goes by itself, and by each server that somebody may have chosen for it.
for ocore_server in [None, *ocore_servers.search([]).ids]:
    ocore_message = OcoreMessage()
    ocore_message['From'] = ocore_message['To'] = 'ocore@localhost'
    ocore_message['Subject'] = 'Asked by oCore'
    ocore_message.set_content('Asked by oCore')
    ocore_before = len(ocore_asked)
    try:
        ocore_servers.send_email(ocore_message, mail_server_id=ocore_server)
        ocore_said.append('the mail went out by another way than SMTP')
    except Exception as ocore_error:
        if len(ocore_asked) == ocore_before:
            ocore_said.append(f'{type(ocore_error).__name__}: {ocore_error}'[:300])
env.cr.rollback()
print('\nocore-mail-servers ' + ocore_json.dumps({'asked': ocore_asked, 'said': ocore_said}))
