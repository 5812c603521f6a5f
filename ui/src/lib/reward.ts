/** Where a reward lies on the one scale used everywhere: 0 worst, 0.5 neither, 1 best. Judges reward
 * from 0 to 1; scores beyond that come from reward models and are squashed. */
export function place(reward: number): number {
  return reward >= 0 && reward <= 1 ? reward : 1 / (1 + Math.exp(-reward));
}
