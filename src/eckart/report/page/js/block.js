// The data embedded in the page: JSON as text; numbers and plotly.js deflated and base64-encoded.

/** The content of a script element that holds JSON. */
export const json = (id) => JSON.parse(document.getElementById(id).textContent);

/** The bytes of a script element that holds base64 of a deflated block. */
export async function unpacked(id) {
  const text = atob(document.getElementById(id).textContent);
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i += 1) bytes[i] = text.charCodeAt(i);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Response(stream).arrayBuffer();
}
