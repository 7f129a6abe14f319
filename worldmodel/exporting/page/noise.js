// The random numbers of torch.Generator on a CPU: the Mersenne Twister MT19937 (Matsumoto and Nishimura, 1998), of
// whose numbers torch.rand takes the lowest 24 bits. So a seed gives the noise that it gives in Python.

const SIZE = 624;
const SHIFT = 397;
const LEAST = Math.fround(1e-20); // of a uniform number, whose logarithm is taken
const MOST = Math.fround(1 - 6e-8);

export class Noise {
  constructor(words, next) {
    this.words = words; // Uint32Array(624)
    this.next = next; // index of the next word
  }

  // seed: a whole number from 0 to 2^53.
  static seeded(seed) {
    const words = new Uint32Array(SIZE);
    words[0] = Number(BigInt.asUintN(32, BigInt(seed)));
    for (let i = 1; i < SIZE; i++) {
      const before = words[i - 1] ^ (words[i - 1] >>> 30);
      words[i] = Math.imul(before, 1812433253) + i;
    }
    return new Noise(words, SIZE);
  }

  copy() {
    return new Noise(this.words.slice(), this.next);
  }

  // A uniform number in [0, 1) of 24 bits.
  uniform() {
    if (this.next >= SIZE) this.twist();
    let word = this.words[this.next++];
    word ^= word >>> 11;
    word ^= (word << 7) & 0x9d2c5680;
    word ^= (word << 15) & 0xefc60000;
    word ^= word >>> 18;
    return (word & 0xffffff) / 0x1000000;
  }

  twist() {
    const words = this.words;
    for (let i = 0; i < SIZE; i++) {
      const mixed = (words[i] & 0x80000000) | (words[(i + 1) % SIZE] & 0x7fffffff);
      words[i] = words[(i + SHIFT) % SIZE] ^ (mixed >>> 1) ^ (mixed & 1 ? 0x9908b0df : 0);
    }
    this.next = 0;
  }

  // Standard Gumbel noise, rounded to float32 after each step, as in Python.
  gumbel(count) {
    const noise = new Float32Array(count);
    for (let i = 0; i < count; i++) {
      const uniform = Math.min(Math.max(this.uniform(), LEAST), MOST);
      noise[i] = -Math.log(Math.fround(-Math.log(uniform)));
    }
    return noise;
  }
}
