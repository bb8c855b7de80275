"""What a network looks at: attention weights, roll-out, input gradient and occlusion, as arrays and as a picture."""
