// Bytes to vectors and back: base64, float16 and safetensors. Knows no page and no server.

const HALVES = makeHalves();

/** Every value of float16 by its bits. */
function makeHalves() {
  const values = new Float32Array(65536);
  for (let bits = 0; bits < 65536; bits++) {
    const sign = bits & 0x8000 ? -1 : 1;
    const exponent = (bits >> 10) & 31;
    const fraction = bits & 1023;
    if (exponent === 0) values[bits] = (sign * fraction) / 2 ** 24;
    else if (exponent === 31) values[bits] = fraction ? NaN : sign * Infinity;
    else values[bits] = sign * 2 ** (exponent - 15) * (1 + fraction / 1024);
  }
  return values;
}

/** The value of a float16, given as its 16 bits, by a table. */
export const halfValues = HALVES;

function fromBase64(text) {
  const raw = atob(text);
  const bytes = new Uint8Array(raw.length);
  for (let i = 0; i < raw.length; i++) bytes[i] = raw.charCodeAt(i);
  return bytes;
}

/**
 * Replaces the base64 of an entry of /embed by typed arrays: Float32Array, or Uint16Array with the
 * bits of float16.
 */
export function decodeVectors(entry) {
  for (const value of Object.values(entry)) {
    for (const vectors of Array.isArray(value) ? value : [value]) {
      if (typeof vectors?.data !== "string") continue;
      const { buffer } = fromBase64(vectors.data);
      vectors.data = vectors.dtype === "float16" ? new Uint16Array(buffer) : new Float32Array(buffer);
    }
  }
}

const TYPES = { F32: Float32Array, F16: Uint16Array, U32: Uint32Array, U8: Uint8Array };

/**
 * A safetensors file: header length as u64, JSON header, tensors end to end.
 *
 * @param {Record<string, {dtype: string, shape: number[], data: ArrayBufferView}>} tensors
 * @param {Record<string, string>} metadata
 */
export function writeSafetensors(tensors, metadata) {
  const header = { __metadata__: metadata };
  let end = 0;
  for (const [name, { dtype, shape, data }] of Object.entries(tensors)) {
    header[name] = { dtype, shape, data_offsets: [end, (end += data.byteLength)] };
  }
  let head = new TextEncoder().encode(JSON.stringify(header));
  const padding = new Uint8Array((8 - (head.length % 8)) % 8).fill(32); // tensors start aligned
  const length = new BigUint64Array([BigInt(head.length + padding.length)]);
  return new Blob([length, head, padding, ...Object.values(tensors).map((each) => each.data)]);
}

/**
 * Reads a safetensors file.
 *
 * @returns {{tensors: Record<string, {shape: number[], data: ArrayBufferView}>, metadata: object}}
 * @throws {SyntaxError} The bytes are not such a file.
 */
export function readSafetensors(buffer) {
  const broken = () => new SyntaxError("The file is cut short or is not a safetensors file.");
  if (buffer.byteLength < 8) throw broken();
  const start = 8 + Number(new DataView(buffer).getBigUint64(0, true));
  if (start > buffer.byteLength) throw broken();
  let header;
  try {
    header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 8, start - 8)));
  } catch {
    throw broken();
  }
  const { __metadata__: metadata = {}, ...entries } = header;
  const tensors = {};
  for (const [name, { dtype, shape, data_offsets: offsets }] of Object.entries(entries)) {
    const Type = TYPES[dtype];
    if (!Type) continue;
    const bytes = buffer.slice(start + offsets[0], start + offsets[1]);
    const size = shape.reduce((product, side) => product * side, 1);
    if (bytes.byteLength !== size * Type.BYTES_PER_ELEMENT) throw broken();
    tensors[name] = { shape, data: new Type(bytes) };
  }
  return { tensors, metadata };
}
