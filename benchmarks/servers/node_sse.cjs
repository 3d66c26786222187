// Node http as an event stream: one `write` per client, the event made once.
'use strict';
const { createServer } = require('node:http');
const { announce, onPublish, payload } = require('./control.cjs');

const clients = new Set();
let position = 0;

function publish(data) {
  position += 1;
  const event = Buffer.from(`event: news\ndata: ${JSON.stringify(data)}\nid: ${position}\n\n`);
  for (const response of clients) response.write(event);
}

const published = onPublish(publish);
const server = createServer((request, response) => {
  if (request.method === 'POST') {
    published(request, response);
    return;
  }
  response.writeHead(200, { 'Content-Type': 'text/event-stream', 'Cache-Control': 'no-cache' });
  clients.add(response);
  response.on('close', () => clients.delete(response));
  response.write('event: welcome\ndata: {}\n\n');
});
announce(server, (count) => {
  for (let i = 0; i < count; i += 1) publish(payload);
});
