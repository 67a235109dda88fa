"""Tiny SMTP servers that begin in clear and offer STARTTLS. Source: RFC 5321; RFC 3207."""

import ssl

from socketkit import ConversationHandler, StreamRequestHandler


class _Mail:
    """What the handlers have in common. `context` is that of `upgrade_tls`."""

    speaks_first = True
    context = None

    def reply(self, *lines):
        for line in lines[:-1]:
            self.wfile.write(b"%b-%b\r\n" % (line[:3], line[4:]))
        self.wfile.write(lines[-1] + b"\r\n")

    @property
    def is_encrypted(self):
        return isinstance(self.request, ssl.SSLSocket)

    def obey(self, line):
        """Do what a command says; return whether to go on."""
        word = line.strip().upper()
        if word.startswith(b"EHLO"):
            self.reply(b"250 here", *([] if self.is_encrypted else [b"250 STARTTLS"]), b"250 HELP")
        elif word == b"STARTTLS":
            if self.is_encrypted:
                self.reply(b"503 encrypted already")
            else:
                self.reply(b"220 go ahead")
                self.upgrade_tls(self.context)
        elif word == b"DATA":
            self.reply(b"354 end with a dot")
            while self.rfile.readline() not in {b".\r\n", b""}:
                pass
            self.reply(b"250 taken")
        elif word == b"QUIT":
            self.reply(b"221 bye")
            return False
        else:
            self.reply(b"250 %b over %b" % (word, (self.request.version() if self.is_encrypted else "nothing").encode()))
        return True


class Mail(_Mail, StreamRequestHandler):
    """Runs in one piece."""

    def handle(self):
        self.reply(b"220 here")
        while (line := self.rfile.readline()) and self.obey(line):
            pass


class MailConversation(_Mail, ConversationHandler):
    """Can be parked between two commands."""

    def setup(self):
        super().setup()
        self.reply(b"220 here")

    def handle_one_request(self):
        self.close_connection = not self.obey(self.rfile.readline())
