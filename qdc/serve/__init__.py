"""An HTTP server in OpenAI's protocol, and a page that shows how tokens unmask."""
